package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/disk/disktest"
)

// segmentOctets returns what the segments take on the disk.
func segmentOctets(d *disktest.Disk) (n int64) {
	for _, name := range d.Names() {
		if isSegment(path.Base(name)) {
			d.Change(name, func(b []byte) []byte { n += int64(len(b)); return b })
		}
	}
	return n
}

// However messages are stored and deleted, the disk that segments take stays under
// what DESIGN.md states: 2.4 times the records of the held messages, 57 octets for
// each grave, and two segments with a batch each.
func TestDiskIsBounded(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100 / slow) {
		rng := rand.New(rand.NewPCG(seed, 1))
		disk := disktest.New(rand.New(rand.NewPCG(seed, 2)))
		opt := Options{FS: disk, InlineMax: 1000, SegmentSize: 2000 + rng.Int64N(20_000), Reserve: 1, CompactRate: -1, KeepGraves: rng.IntN(2) == 0}
		j, err := Open("journal", opt)
		if err != nil {
			t.Fatal(err)
		}
		var held []ID
		batch, size := 1+rng.IntN(8), 10+rng.IntN(800)
		for round := range 60 {
			for range 1 + rng.IntN(10) {
				var ms []Message
				for range batch {
					id := NewID()
					held = append(held, id)
					b := j.NewBody(id)
					b.Write(make([]byte, 1+rng.IntN(size)))
					ms = append(ms, Message{metaOf(id, "mbx-1"), b})
				}
				if err := j.Commit(ms...); err != nil {
					t.Fatal(err)
				}
			}
			// Most go, and some of all ages stay.
			rng.Shuffle(len(held), func(a, b int) { held[a], held[b] = held[b], held[a] })
			for n := len(held) * 3 / 4; n > 0; {
				k := min(n, 1+rng.IntN(20))
				if err := j.Delete(held[:k]...); err != nil {
					t.Fatal(err)
				}
				held, n = held[k:], n-k
			}
			for _, g := range j.Graves() {
				if rng.IntN(4) > 0 {
					j.Forget(g.ID)
				}
			}
			if err := j.compact(); err != nil {
				t.Fatal(err)
			}
			live := int64(0)
			for i := range j.buckets {
				for _, e := range j.buckets[i].entries {
					_, n := e.record()
					live += n
				}
			}
			for _, s := range j.segments {
				if s.stuck {
					t.Fatalf("seed %d: a segment is stuck", seed)
				}
			}
			bound := live*24/10 + 57*int64(len(j.graves)) + 2*(opt.SegmentSize+int64(batch)*int64(size+200))
			if got := segmentOctets(disk); got > bound {
				t.Fatalf("seed %d, round %d: %d octets on the disk for %d of records and %d graves; bound %d", seed, round, got, live, len(j.graves), bound)
			}
			if rng.IntN(10) == 0 {
				j.Close()
				if j, err = Open("journal", opt); err != nil {
					t.Fatal(err)
				}
				if n := len(j.List("mbx-1")); n != len(held) {
					t.Fatalf("seed %d, round %d: %d messages, want %d", seed, round, n, len(held))
				}
			}
		}
		j.Close()
	}
}

// The compactor does its work by itself, body files included, and a segment whose
// octets are bad is left as it is.
func TestCompactorRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *Journal { return openDir(t, dir, Options{InlineMax: 2000, SegmentSize: 10_000}) }
	j := open()
	var kept []ID
	sealed := bytes.Repeat([]byte("k"), 1000)
	large := bytes.Repeat([]byte("L"), 5000)
	for i := range 5 {
		ids := storeSome(t, j, 12, 1000)
		id := NewID()
		if err := store(j, id, "mbx-1", [][]byte{sealed, large}[i%2]); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, id)
		if err := j.Delete(ids...); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			j.Close()
			j = open()
		}
	}
	for deadline := time.Now().Add(5 * time.Second); len(segmentsOf(t, dir)) > 2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d segments for %d messages", len(segmentsOf(t, dir)), len(kept))
		}
	}
	for range 3 {
		for i, id := range kept {
			if b, err := load(j, id); err != nil || !bytes.Equal(b, [][]byte{sealed, large}[i%2]) {
				t.Errorf("%s: %v", id, err)
			}
		}
		if n := len(listed(j)); n != len(kept) || len(j.Damaged()) > 0 {
			t.Errorf("%d messages, damage %v", n, j.Damaged())
		}
		j.Close()
		j = open()
	}
	if err := j.Delete(kept...); err != nil {
		t.Fatal(err)
	}
	j.Close()
	open().Close()
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left on disk: %v", left)
	}
}

// Copying keeps to its rate, and commits do not wait for it.
func TestCompactionIsPaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		j, err := Open("journal", Options{FS: disk, SegmentSize: 50_000, CompactRate: 1000})
		if err != nil {
			t.Fatal(err)
		}
		var keep, gone []ID
		for range 4 { // a segment each
			keep = append(keep, storeSome(t, j, 5, 1000)...)
			gone = append(gone, storeSome(t, j, 39, 1000)...)
		}
		storeSome(t, j, 1, 100)
		if err := j.Delete(gone...); err != nil {
			t.Fatal(err)
		}
		moved := func() (n int) {
			j.mu.Lock()
			defer j.mu.Unlock()
			for _, id := range keep {
				if j.entry(id).seg == j.current {
					n++
				}
			}
			return n
		}
		// Five records are 5735 octets: a segment at a time, then 5.7 seconds.
		for i := range 4 {
			time.Sleep(100 * time.Millisecond)
			if n := moved(); n != 5*(i+1) {
				t.Errorf("%d copied after %d steps", n, i)
			}
			start := time.Now()
			storeSome(t, j, 2, 100)
			if d := time.Since(start); d > 0 {
				t.Errorf("a commit waited %v", d)
			}
			time.Sleep(5500 * time.Millisecond)
			if n := moved(); n != 5*(i+1) {
				t.Errorf("%d copied before it was time for step %d", n, i+1)
			}
			time.Sleep(135 * time.Millisecond)
		}
		j.Close() // at once, whatever the compactor waits for
	})
}

// A bad record in a sparse segment stops its compaction and nothing else.
func TestCompactionOfADamagedSegment(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, SegmentSize: 5000, CompactRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	keep := storeSome(t, j, 2, 1000)
	gone := storeSome(t, j, 10, 1000)
	good, err := load(j, keep[1])
	if err != nil {
		t.Fatal(err)
	}
	e := j.entry(keep[1])
	if _, err := e.seg.file.WriteAt([]byte("bad"), e.bodyAt()+5); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete(gone...); err != nil {
		t.Fatal(err)
	}
	if err := j.compact(); !errors.Is(err, ErrDamaged) {
		t.Errorf("copied what is damaged: %v", err)
	}
	if err := j.compact(); err != nil {
		t.Errorf("tried again at once: %v", err)
	}
	if d := j.Damaged(); len(d) != 1 || d[0].ID != keep[1] {
		t.Errorf("damage %v", d)
	}
	if _, err := load(j, keep[0]); err != nil || j.entry(keep[1]) == nil {
		t.Error(fmt.Errorf("a message is gone: %w", err))
	}
	b := j.NewBody(keep[1])
	b.Write(make([]byte, 1000))
	if err := j.Replace(keep[1], b); err == nil {
		t.Error("replaced with other octets")
	}
	b = j.NewBody(keep[1])
	b.Write(good)
	if err := j.Replace(keep[1], b); err != nil {
		t.Fatal(err)
	}
	before := len(j.segments)
	if err := j.compact(); err != nil || len(j.segments) >= before {
		t.Errorf("after the repair: %v, %d segments of %d", err, len(j.segments), before)
	}
	for _, id := range keep {
		if _, err := load(j, id); err != nil {
			t.Error(err)
		}
	}
}

// A message whose record moved while it was read is not copied: the octets, and the
// place of its body, may be other ones now.
func TestCopyOfAnOldRecordIsDropped(t *testing.T) {
	t.Parallel()
	j := openDir(t, t.TempDir(), Options{InlineMax: 100, CompactRate: -1})
	id := storeSome(t, j, 1, 1000)[0]
	sealed, err := load(j, id)
	if err != nil {
		t.Fatal(err)
	}
	e := j.entry(id)
	stale := addition{meta: e.meta(), moved: e, copied: true, was: e.place()}
	j.opt.InlineMax = 10_000
	b := j.NewBody(id)
	b.Write(sealed)
	if err := j.Replace(id, b); err != nil {
		t.Fatal(err)
	}
	c := &commit{adds: []addition{stale}}
	if err := j.enqueue(c); err != nil {
		t.Fatal(err)
	}
	if got, err := load(j, id); err != nil || !bytes.Equal(got, sealed) || c.adds[0].entry != nil {
		t.Errorf("%v", err)
	}
}

// What a tombstone deletes stays deleted though both are copied again and again, and
// what was restored after a deletion stays though the tombstone is copied behind it.
func TestCopiedTombstones(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opt := Options{SegmentSize: 3000, CompactRate: -1, KeepGraves: true}
	j := openDir(t, dir, opt)
	held := storeSome(t, j, 8, 1000) // pairs in four segments; one of each stays
	gone := []ID{held[0], held[3], held[5]}
	evicted := held[6]
	meta, _ := j.Has(evicted)
	sealed, err := load(j, evicted)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Delete(gone...); err != nil {
		t.Fatal(err)
	}
	if err := j.Evict(evicted); err != nil {
		t.Fatal(err)
	}
	b := j.NewBody(evicted)
	b.Write(sealed)
	if err := j.Restore(meta, b); err != nil {
		t.Fatal(err)
	}
	for round := range 6 {
		if err := j.Delete(storeSome(t, j, 10, 1000)...); err != nil {
			t.Fatal(err)
		}
		for _, g := range j.Graves() {
			if g.ID != gone[0] && g.ID != gone[1] && g.ID != gone[2] {
				j.Forget(g.ID)
			}
		}
		if err := j.compact(); err != nil {
			t.Fatal(err)
		}
		if round%2 == 1 {
			j.Close()
			j = openDir(t, dir, opt)
		}
		graves := map[ID]time.Time{}
		for _, g := range j.Graves() {
			graves[g.ID] = g.At
		}
		for _, id := range gone {
			if _, ok := j.Has(id); ok || time.Since(graves[id]) > time.Minute {
				t.Fatalf("round %d: %s: held %v, grave of %v", round, id, ok, graves[id])
			}
		}
		if _, err := load(j, evicted); err != nil || len(listed(j)) != 5 {
			t.Fatalf("round %d: %d listed, %v", round, len(listed(j)), err)
		}
	}
}
