package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"msgw/internal/disk/disktest"
)

func seeds(t *testing.T, n int, f func(t *testing.T, rng *rand.Rand)) {
	for s := range uint64(n) {
		t.Run(fmt.Sprintf("seed%d", s), func(t *testing.T) {
			t.Parallel()
			f(t, rand.New(rand.NewPCG(s, 1)))
		})
	}
}

// TestCrash stores and deletes from several goroutines on a disk with a volatile
// cache that is full now and then, cuts the power at a random operation, and checks
// what came back.
func TestCrash(t *testing.T) {
	t.Parallel()
	seeds(t, 200, func(t *testing.T, rng *rand.Rand) {
		disk := disktest.New(rand.New(rand.NewPCG(rng.Uint64(), 3)))
		var mu sync.Mutex
		want := map[ID][]byte{}   // acknowledged and not deleted
		maybe := map[ID][]byte{}  // outcome unknown
		deleted := map[ID]bool{}  // deletion acknowledged
		deleting := map[ID]bool{} // deletion outcome unknown
		for round := range 4 {
			j, err := Open("journal", Options{FS: disk, InlineMax: 2000, SegmentSize: 20_000})
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if d := j.Damaged(); len(d) > 0 {
				t.Fatalf("round %d: damage after a crash: %v", round, d)
			}
			listed := map[ID]bool{}
			for _, m := range j.List("mbx-1") {
				listed[m.ID] = true
				b, err := load(j, m.ID)
				sent := want[m.ID]
				if sent == nil {
					sent = maybe[m.ID]
				}
				if err != nil || sent == nil || !bytes.Equal(b, sent) {
					t.Fatalf("round %d: %s: other octets than were sent, %v", round, m.ID, err)
				}
				if deleted[m.ID] {
					t.Fatalf("round %d: %s is back after its deletion was acknowledged", round, m.ID)
				}
				want[m.ID] = b
			}
			for id := range want {
				if !listed[id] && !deleting[id] {
					t.Fatalf("round %d: %s was acknowledged and is gone", round, id)
				}
				if !listed[id] {
					delete(want, id)
				}
			}
			clear(maybe)
			clear(deleting)

			left, faults := 20+rng.IntN(200), rand.New(rand.NewPCG(rng.Uint64(), 4))
			disk.Fail(func(op, name string) error {
				if left--; left < 0 {
					return syscall.EIO // the power is gone: nothing more gets through
				}
				if slices.Contains([]string{"mkdir", "create", "write", "rename"}, op) && faults.IntN(20) == 0 {
					return syscall.ENOSPC // for a moment
				}
				return nil
			})
			refused := func(err error) bool { return errors.Is(err, ErrDiskFull) && !errors.Is(err, ErrFailed) }
			var wg sync.WaitGroup
			for range 4 {
				seed := rng.Uint64()
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(seed, 2))
					for j.Err() == nil {
						sent := map[ID][]byte{}
						var ms []Message
						var ids []ID
						for range 1 + rng.IntN(3) {
							id, b := NewID(), text(rng, 1+rng.IntN(4000))
							sent[id] = b
							ids = append(ids, id)
							ms = append(ms, Message{metaOf(id, "mbx-1"), j.NewBody(id)})
						}
						mu.Lock()
						maps.Copy(maybe, sent)
						mu.Unlock()
						err := commitAll(j, ms, sent)
						mu.Lock()
						if err == nil {
							maps.Copy(want, sent)
						}
						if err == nil || refused(err) { // refused: it must never be seen again
							for id := range sent {
								delete(maybe, id)
							}
						}
						mu.Unlock()
						if refused(err) {
							continue
						}
						if err != nil {
							return
						}
						if ids = ids[rng.IntN(len(ids)+1):]; len(ids) == 0 {
							continue
						}
						mu.Lock()
						for _, id := range ids {
							deleting[id] = true
						}
						mu.Unlock()
						err = j.Delete(ids...)
						if err != nil && !refused(err) {
							return
						}
						mu.Lock()
						for _, id := range ids {
							delete(deleting, id)
							if err == nil {
								delete(want, id)
								deleted[id] = true
							}
						}
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			if rng.IntN(4) == 0 {
				disk.Fail(nil)
				j.Close() // an orderly end before the power cut
			}
			disk.Crash()
			j.Close()
		}
	})
}

func openDir(t *testing.T, dir string, opt Options) *Journal {
	t.Helper()
	j, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestRestartListsInOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 1))
	want := map[ID][]byte{}
	var order []ID
	for range 3 { // three processes, three origins
		j := openDir(t, dir, Options{InlineMax: 5000})
		for i := range 10 {
			id := NewID()
			want[id] = text(rng, i*1000)
			order = append(order, id)
			if err := store(j, id, "mbx-1", want[id]); err != nil {
				t.Fatal(err)
			}
		}
		j.Close()
	}
	j := openDir(t, dir, Options{})
	var got []ID
	for _, m := range j.List("mbx-1") {
		got = append(got, m.ID)
		if b, err := load(j, m.ID); err != nil || !bytes.Equal(b, want[m.ID]) {
			t.Errorf("%s: %v", m.ID, err)
		}
		if m.Sealed != int64(len(want[m.ID])) {
			t.Errorf("%s: %d octets", m.ID, m.Sealed)
		}
	}
	if !slices.Equal(got, order) {
		t.Errorf("listed %v, want %v", got, order)
	}
	w := j.Waiting()["mbx-1"]
	if w.Messages != 30 || w.Octets != 90 || w.Keys["0123456789abcdef"] != 30 || !w.Oldest.Equal(j.List("mbx-1")[0].Received) {
		t.Errorf("waiting %+v", w)
	}
}

// The space of deleted messages returns, tombstones included.
func TestSpaceReturns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 5 {
		j := openDir(t, dir, Options{InlineMax: 2000, SegmentSize: 10_000})
		var ids []ID
		for range 50 {
			id := NewID()
			if err := store(j, id, "mbx-1", text(rng, 1000+rng.IntN(2000))); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		rng.Shuffle(len(ids), func(a, b int) { ids[a], ids[b] = ids[b], ids[a] })
		for len(ids) > 0 {
			if err := j.Delete(ids[:5]...); err != nil {
				t.Fatal(err)
			}
			ids = ids[5:]
		}
		j.Close()
		j = openDir(t, dir, Options{})
		if n := len(j.List("mbx-1")); n != 0 {
			t.Fatalf("round %d: %d messages are back", round, n)
		}
		j.Close()
	}
	var files []string
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			files = append(files, p)
		}
		return err
	})
	if len(files) != 0 {
		t.Errorf("left on disk: %v", files)
	}
}

// A tombstone must outlive the message it deletes.
func TestTombstoneOutlivesItsMessage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 1))
	j := openDir(t, dir, Options{})
	keep, gone := NewID(), NewID()
	for _, id := range []ID{keep, gone} {
		if err := store(j, id, "mbx-1", text(rng, 100)); err != nil {
			t.Fatal(err)
		}
	}
	j.Close()
	j = openDir(t, dir, Options{}) // the tombstone goes to another origin
	if err := j.Delete(gone); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		j.Close()
		j = openDir(t, dir, Options{})
		if l := j.List("mbx-1"); len(l) != 1 || l[0].ID != keep {
			t.Fatalf("listed %v", l)
		}
	}
}

func segmentsOf(t *testing.T, dir string) []string {
	t.Helper()
	s, err := filepath.Glob(filepath.Join(dir, "*", "*"+segmentSuffix))
	if err != nil || len(s) == 0 {
		t.Fatalf("segments: %v %v", s, err)
	}
	return s
}

// Damage is not a torn tail: it is reported, nothing behind it is lost, and
// nothing of the file is removed.
func TestDamageIsReported(t *testing.T) {
	t.Parallel()
	for what, fromBody := range map[string]int64{"header": -20, "body": 20} {
		dir := t.TempDir()
		rng := rand.New(rand.NewPCG(1, 1))
		j := openDir(t, dir, Options{})
		var ids []ID
		for range 5 {
			ids = append(ids, NewID())
			if err := store(j, ids[len(ids)-1], "mbx-1", text(rng, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		at := j.entry(ids[2]).bodyAt() + fromBody
		j.Close()
		name := segmentsOf(t, dir)[0]
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[at] ^= 1
		os.Remove(sidePath(name))
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		j = openDir(t, dir, Options{})
		readable := 0
		for _, m := range j.List("mbx-1") {
			if _, err := load(j, m.ID); err == nil {
				readable++
			} else if !errors.Is(err, ErrDamaged) || m.ID != ids[2] {
				t.Errorf("%s: %s: %v", what, m.ID, err)
			}
		}
		if readable != 4 {
			t.Errorf("%s: %d messages readable, want 4", what, readable)
		}
		if d := j.Damaged(); len(d) != 1 || (d[0].ID == ids[2]) != (what == "body") {
			t.Errorf("%s: damage %v", what, d)
		}
		if err := j.Delete(ids...); err != nil {
			t.Error(err)
		}
		j.Close()
		openDir(t, dir, Options{}).Close()
		if _, err := os.Stat(name); (err == nil) != (what == "header") {
			t.Errorf("%s: a damaged segment must stay, a drained one must go: %v", what, err)
		}
	}
}

func TestTornTailIsCut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 1))
	j := openDir(t, dir, Options{})
	var ids []ID
	for range 3 {
		ids = append(ids, NewID())
		if err := store(j, ids[len(ids)-1], "mbx-1", text(rng, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	lastBody := j.entry(ids[2]).bodyAt()
	start := lastBody - prefixSize - messageHeaderSize - int64(len("mbx-1"))
	j.Close()
	name := segmentsOf(t, dir)[0]
	whole, _ := os.ReadFile(name)
	for _, tail := range [][]byte{whole[:start], whole[:start+10], whole[:lastBody-10], whole[:lastBody+500],
		append(bytes.Clone(whole[:start]), make([]byte, 4096)...),
		append(bytes.Clone(whole[:lastBody]), make([]byte, 1200)...)} {
		os.Remove(sidePath(name))
		if err := os.WriteFile(name, tail, 0o600); err != nil {
			t.Fatal(err)
		}
		j := openDir(t, dir, Options{})
		if n, d := len(j.List("mbx-1")), j.Damaged(); n != 2 || len(d) > 0 {
			t.Errorf("tail of %d octets: %d messages, damage %v", len(tail), n, d)
		}
		j.Close()
	}
}

func TestFailedFlushStopsTheJournal(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"sync", "syncdir"} {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		j, err := Open("journal", Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		first := NewID()
		if op == "sync" {
			if err := store(j, first, "mbx-1", []byte("first")); err != nil {
				t.Fatal(err)
			}
		}
		failures := 1
		disk.Fail(func(o, _ string) error {
			if o == op && failures > 0 {
				failures-- // the next flush would succeed, and must not be trusted
				return syscall.EIO
			}
			return nil
		})
		for range 2 {
			if err := store(j, NewID(), "mbx-1", []byte("x")); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: %v", op, err)
			}
		}
		if !errors.Is(j.Err(), ErrFailed) {
			t.Errorf("%s: Err() = %v", op, j.Err())
		}
		if op == "sync" {
			if err := j.Delete(first); !errors.Is(err, ErrFailed) {
				t.Errorf("delete: %v", err)
			}
			if b, err := load(j, first); err != nil || string(b) != "first" || len(j.List("mbx-1")) != 1 {
				t.Errorf("a committed message must stay readable: %q %v", b, err)
			}
		}
		j.Close()
	}
}

// A full disk refuses, loses nothing, and goes on when there is room again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, InlineMax: 100, Reserve: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for _, size := range []int{50, 500} { // in the segment, in its own file
		ok := NewID()
		if err := store(j, ok, "mbx-1", bytes.Repeat([]byte("a"), size)); err != nil {
			t.Fatal(err)
		}
		disk.Fail(func(op, _ string) error {
			if op == "write" {
				return syscall.ENOSPC
			}
			return nil
		})
		if err := store(j, NewID(), "mbx-1", bytes.Repeat([]byte("b"), size)); !errors.Is(err, ErrDiskFull) {
			t.Errorf("%d octets: %v", size, err)
		}
		disk.Fail(nil)
		later := NewID()
		if err := store(j, later, "mbx-1", bytes.Repeat([]byte("c"), size)); err != nil {
			t.Errorf("after there was room: %v", err)
		}
		for _, id := range []ID{ok, later} {
			if b, err := load(j, id); err != nil || len(b) != size {
				t.Errorf("%v", err)
			}
		}
	}
	disk.Crash()
	k, err := Open("journal", Options{FS: disk, Reserve: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if n := len(k.List("mbx-1")); n != 4 || len(k.Damaged()) > 0 {
		t.Errorf("%d messages, damage %v", n, k.Damaged())
	}
	disk.SetFree(5000)
	if err := k.Room(4000); err != nil {
		t.Error(err)
	}
	if err := k.Room(4001); !errors.Is(err, ErrDiskFull) {
		t.Error(err)
	}
}

func TestReaderSurvivesDelete(t *testing.T) {
	t.Parallel()
	j := openDir(t, t.TempDir(), Options{InlineMax: 100})
	for _, size := range []int{50, 5000} {
		id, b := NewID(), bytes.Repeat([]byte("z"), size)
		if err := store(j, id, "mbx-1", b); err != nil {
			t.Fatal(err)
		}
		r, err := j.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Delete(id); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d octets: %v", size, err)
		}
		r.Close()
		if _, err := j.Open(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("after delete: %v", err)
		}
	}
}
