package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"msgw/internal/disk/disktest"
)

// What a process lists stays though the one before it had not flushed it: a program
// that dies leaves its writes in the machine's memory, and the power may fail next.
func TestWhatIsListedIsFlushed(t *testing.T) {
	t.Parallel()
	seen := 0
	for seed := range uint64(40) {
		disk := disktest.New(rand.New(rand.NewPCG(seed, 1)))
		opt := Options{FS: disk, SegmentSize: 3000, CompactRate: -1}
		j, err := Open("journal", opt)
		if err != nil {
			t.Fatal(err)
		}
		disk.Fail(func(op, name string) error {
			if op == "sync" || op == "syncdir" && seed%2 == 0 {
				return syscall.EIO // dies before it is flushed
			}
			return nil
		})
		_ = store(j, NewID(), "mbx-1", make([]byte, 1000))
		disk.Restart()
		j.Close()
		k, err := Open("journal", opt)
		if err != nil {
			t.Fatal(err)
		}
		before := listed(k)
		seen += len(before)
		disk.Crash()
		k.Close()
		if k, err = Open("journal", opt); err != nil {
			t.Fatal(err)
		}
		if after := listed(k); !slices.Equal(before, after) || len(k.Damaged()) > 0 {
			t.Fatalf("seed %d: %d listed, then %d", seed, len(before), len(after))
		}
		k.Close()
	}
	if seen == 0 {
		t.Error("nothing was ever listed")
	}
}

// A removal that a dead process did not flush is flushed before its tombstone may go.
func TestRemovalOfADeadProcess(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		disk := disktest.New(rand.New(rand.NewPCG(seed, 1)))
		open := func() *Journal {
			j, err := Open("journal", Options{FS: disk, CompactRate: -1})
			if err != nil {
				t.Fatal(err)
			}
			return j
		}
		j := open()
		ids := storeSome(t, j, 1, 100)
		j.Close()
		j = open()
		removed := false
		disk.Fail(func(op, name string) error {
			if op == "remove" && strings.HasSuffix(name, segmentSuffix) {
				removed = true
			} else if removed {
				return syscall.EIO
			}
			return nil
		})
		if err := j.Delete(ids...); err != nil || !removed {
			t.Fatal(err, removed)
		}
		disk.Restart()
		j.Close()
		open().Close() // removes the tombstone
		disk.Crash()
		j = open()
		if n := len(listed(j)); n != 0 {
			t.Fatalf("seed %d: a deleted message is back", seed)
		}
		j.Close()
	}
}

// A log that cannot be read for once has its generation all the same: what is written
// meanwhile is newer.
func TestGenerationOfAnUnreadableLog(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) { // origins are random
		disk := disktest.New(rand.New(rand.NewPCG(seed, 1)))
		opt := Options{FS: disk, CompactRate: -1}
		open := func() *Journal {
			j, err := Open("journal", opt)
			if err != nil {
				t.Fatal(err)
			}
			return j
		}
		j := open()
		id := storeSome(t, j, 2, 100)[0]
		sealed, err := load(j, id)
		if err != nil {
			t.Fatal(err)
		}
		j.Close()
		j = open()
		if err := j.Evict(id); err != nil {
			t.Fatal(err)
		}
		storeSome(t, j, 1, 100)
		bad := j.origin
		j.Close()
		for _, name := range disk.Names() {
			if isSide(filepath.Base(name)) {
				disk.Remove(name)
			}
		}
		disk.Unreadable(func(name string, _, _ int64) bool { return strings.Contains(name, bad) })
		j = open()
		b := j.NewBody(id)
		b.Write(sealed)
		if err := j.Replace(id, b); err != nil {
			t.Fatal(err)
		}
		j.Close()
		disk.Unreadable(nil)
		j = open()
		if got, err := load(j, id); err != nil || !bytes.Equal(got, sealed) {
			t.Fatalf("seed %d: what was stored last is gone: %v", seed, err)
		}
		j.Close()
	}
}

// A deletion before a message was restored says nothing of it, though the restored copy
// was evicted since.
func TestOldGraveOfAnEvictedMessage(t *testing.T) {
	t.Parallel()
	for range 12 { // origins are random
		dir := t.TempDir()
		opt := Options{CompactRate: -1, KeepGraves: true}
		j := openDir(t, dir, opt)
		id := storeSome(t, j, 2, 100)[0]
		meta, _ := j.Has(id)
		sealed, err := load(j, id)
		if err != nil {
			t.Fatal(err)
		}
		restore := func() error {
			b := j.NewBody(id)
			defer b.Discard()
			b.Write(sealed)
			return j.Restore(meta, b)
		}
		if err := j.Delete(id); err != nil {
			t.Fatal(err)
		}
		j.Forget(id)
		if err := restore(); err != nil {
			t.Fatal(err)
		}
		j.Close()
		j = openDir(t, dir, opt)
		storeSome(t, j, 1, 100)
		if err := j.Evict(id); err != nil {
			t.Fatal(err)
		}
		j.Close()
		j = openDir(t, dir, opt)
		if g := j.Graves(); len(g) > 0 {
			t.Fatalf("the grave of a message that was restored: %v", g)
		}
		if err := restore(); err != nil {
			t.Fatal(err)
		}
		j.Close()
	}
}

// A finished segment that lost its end between two records is seen by its side file; a
// listener hears of it, and of whatever else is found at start.
func TestShortenedLastSegment(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	var told []Damage
	opt := Options{FS: disk, CompactRate: -1, OnDamage: func(d Damage) { told = append(told, d) }}
	j, err := Open("journal", opt)
	if err != nil {
		t.Fatal(err)
	}
	ids := storeSome(t, j, 3, 1000)
	e := j.entry(ids[2])
	at, _ := e.record()
	j.Close()
	disk.Change(e.seg.path, func(b []byte) []byte { return b[:at] })
	if j, err = Open("journal", opt); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if n := len(listed(j)); n != 2 || len(j.Damaged()) != 1 || len(told) != 1 || told[0].File != e.seg.path {
		t.Errorf("%d messages, damage %v, told %v", n, j.Damaged(), told)
	}
}

// Of two copies of a body the whole one is kept, in whatever log it lies.
func TestTwoBodies(t *testing.T) {
	t.Parallel()
	for _, origin := range []string{strings.Repeat("0", 32), strings.Repeat("f", 32)} {
		for _, bad := range []int{0, 1, 2} { // of 2: both
			dir := t.TempDir()
			j := openDir(t, dir, Options{InlineMax: 100})
			id := storeSome(t, j, 1, 1000)[0]
			want, err := load(j, id)
			if err != nil {
				t.Fatal(err)
			}
			first := filepath.Join(dir, j.origin)
			j.Close()
			second := filepath.Join(dir, origin)
			if err := os.CopyFS(second, os.DirFS(first)); err != nil {
				t.Fatal(err)
			}
			for i, o := range []string{first, second} {
				if bad == i || bad == 2 {
					rewrite(t, filepath.Join(o, bodiesDir, id.String()), func(b []byte) []byte { return b[:500] })
				}
			}
			for range 2 {
				j = openDir(t, dir, Options{InlineMax: 100})
				if got, err := load(j, id); bad < 2 && (err != nil || !bytes.Equal(got, want)) || bad == 2 && err == nil {
					t.Errorf("origin %s, bad %d: %v", origin[:1], bad, err)
				}
				j.Close()
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*", bodiesDir, "*")); bad == 2 && len(left) != 2 {
				t.Errorf("left: %v", left)
			}
		}
	}
}

// Nothing that moves a message is written behind its tombstone, though the message is
// still in the index.
func TestNothingMovesBehindATombstone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{CompactRate: -1})
	id := storeSome(t, j, 1, 100)[0]
	sealed, err := load(j, id)
	if err != nil {
		t.Fatal(err)
	}
	j.mu.Lock()
	e := j.entry(id)
	j.hide(e)
	j.mu.Unlock()
	move := addition{meta: e.meta(), body: sealed, moved: e}
	if err := j.enqueue(&commit{deletes: []*entry{e}}); err != nil {
		t.Fatal(err)
	}
	c := &commit{adds: []addition{move}}
	if err := j.enqueue(c); err != nil || c.adds[0].entry != nil {
		t.Errorf("moved: %v", err)
	}
	j.Close()
	if l := listed(openDir(t, dir, Options{})); len(l) != 0 {
		t.Error("a deleted message is back")
	}
}

// A removal that cannot be flushed stops the journal, as every failed flush does.
func TestFailedFlushOfARemoval(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, SegmentSize: 500, CompactRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	ids := append(storeSome(t, j, 1, 600), storeSome(t, j, 1, 10)...) // the second segment has room
	disk.Fail(func(op, _ string) error {
		if op == "syncdir" {
			return syscall.EIO
		}
		return nil
	})
	if err := j.Delete(ids[0]); err != nil {
		t.Error(err) // its tombstone is durable
	}
	if err := j.Err(); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
}

// The body of a message that was deleted and came back later stays, though damage hides
// its record: it is what a person could still save.
func TestBodyOfAHiddenRecordStays(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	open := func() *Journal {
		j, err := Open("journal", Options{FS: disk, InlineMax: 10, KeepGraves: true, CompactRate: -1})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	id, octets := NewID(), bytes.Repeat([]byte("body "), 100)
	j := open()
	if err := store(j, NewID(), "mbx-1", nil); err != nil {
		t.Fatal(err)
	}
	if err := store(j, id, "mbx-1", octets); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete(id); err != nil {
		t.Fatal(err)
	}
	j.Close()
	j = open()
	j.Forget(id)
	if err := store(j, id, "mbx-1", octets); err != nil {
		t.Fatal(err)
	}
	j.Close()
	hidden := false
	for _, name := range disk.Names() {
		if strings.HasSuffix(name, sideSuffix) {
			disk.Remove(name)
			continue
		}
		disk.Change(name, func(b []byte) []byte {
			// The last record of the message; the tombstone is in another log.
			if i := bytes.Index(b, []byte(magic)); i >= 0 && strings.Contains(name, j.origin[len("journal/"):]) {
				hidden = true
				b[i+prefixSize+8] ^= 1
			}
			return b
		})
	}
	if !hidden {
		t.Fatal("no record was found to be damaged")
	}
	j = open()
	defer j.Close()
	if len(j.Damaged()) == 0 {
		t.Fatal("no damage is reported")
	}
	if !slices.ContainsFunc(disk.Names(), func(name string) bool { return strings.HasSuffix(name, "/"+id.String()) }) {
		t.Errorf("the body is gone: %v", disk.Names())
	}
}
