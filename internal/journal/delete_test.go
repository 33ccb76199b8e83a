package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"msgw/internal/disk/disktest"
)

// Delete answers only when the deletion is durable, though another Delete of the
// same message is under way.
func TestDeleteTwiceAtOnce(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	g := &gate{FS: disk, waiting: make(chan struct{}, 10)}
	j, err := Open("journal", Options{FS: g, InlineMax: 100})
	if err != nil {
		t.Fatal(err)
	}
	ids := append(storeSome(t, j, 1, 1000), storeSome(t, j, 1, 50)...)
	open := make(chan struct{})
	g.mu.Lock()
	g.open = open
	g.mu.Unlock()
	done := make(chan error, 2)
	go func() { done <- j.Delete(ids...) }()
	<-g.waiting
	go func() { done <- j.Delete(ids[0], ids[1], ids[0]) }()
	select {
	case err := <-done:
		close(open)
		t.Fatalf("deletion acknowledged before anything was flushed: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	g.mu.Lock()
	g.open = nil
	g.mu.Unlock()
	close(open)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if j.current.live != 0 {
		t.Errorf("%d messages live in the segment, all are deleted", j.current.live)
	}
	j.Close()
	k, err := Open("journal", Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	if d := namesIn(disk, "journal"); len(d) != 0 {
		t.Errorf("space does not return: %v", d)
	}
}

// Whoever opens a message that is being deleted gets it whole or ErrNotFound.
func TestOpenDuringDelete(t *testing.T) {
	t.Parallel()
	j := openDir(t, t.TempDir(), Options{InlineMax: 100, SegmentSize: 3000})
	for i := range 60 {
		id, b := NewID(), bytes.Repeat([]byte{byte(i)}, 50+i%2*500)
		if err := store(j, id, "mbx-1", b); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					got, err := load(j, id)
					if errors.Is(err, ErrNotFound) {
						return
					}
					if err != nil || !bytes.Equal(got, b) {
						t.Errorf("%v", err)
						return
					}
				}
			})
		}
		wg.Go(func() {
			if err := j.Delete(id); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
	}
}

// A deletion that fails leaves the message listed.
func TestFailedDelete(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	ids := storeSome(t, j, 2, 50)
	disk.Fail(func(o, _ string) error {
		if o == "write" {
			return syscall.ENOSPC
		}
		return nil
	})
	if err := j.Delete(ids...); !errors.Is(err, ErrDiskFull) {
		t.Error(err)
	}
	if n, w := len(j.List("mbx-1")), j.Waiting()["mbx-1"].Messages; n != 2 || w != 2 {
		t.Errorf("%d listed, %d waiting", n, w)
	}
	disk.Fail(nil)
	if err := j.Delete(ids...); err != nil {
		t.Error(err)
	}
	if n := len(j.List("mbx-1")); n != 0 {
		t.Errorf("%d listed", n)
	}
}

// Tombstones stay, in a running process too, as long as a message they delete is on
// the disk; then their space returns as well.
func TestTombstonesOfARunningProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{SegmentSize: 3000})
	first := storeSome(t, j, 2, 1000) // the second stays and holds the segment
	storeAndDelete := func() {
		if err := j.Delete(storeSome(t, j, 10, 1000)...); err != nil {
			t.Fatal(err)
		}
	}
	storeAndDelete()
	if err := j.Delete(first[0]); err != nil {
		t.Fatal(err)
	}
	storeAndDelete()
	storeAndDelete()
	j.Close()
	j = openDir(t, dir, Options{SegmentSize: 3000})
	if l := j.List("mbx-1"); len(l) != 1 || l[0].ID != first[1] {
		t.Fatalf("%d messages", len(l))
	}
	if err := j.Delete(first[1]); err != nil {
		t.Fatal(err)
	}
	storeAndDelete()
	storeAndDelete()
	if n := len(segmentsOf(t, dir)); n > 2 {
		t.Errorf("%d segments for nothing", n)
	}
}

// What was removed stays removed: no deleted message returns because its removal
// was lost and its tombstone's was not.
func TestRemovalsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		disk := disktest.New(rand.New(rand.NewPCG(seed, 1)))
		open := func() *Journal {
			j, err := Open("journal", Options{FS: disk})
			if err != nil {
				t.Fatal(err)
			}
			return j
		}
		j := open()
		ids := storeSome(t, j, 1, 100)
		j.Close()
		j = open()
		if err := j.Delete(ids...); err != nil {
			t.Fatal(err)
		}
		j.Close()
		j = open()
		disk.Crash()
		j.Close()
		j = open()
		if n := len(j.List("mbx-1")); n != 0 {
			t.Fatalf("seed %d: a deleted message is back", seed)
		}
		j.Close()
	}
}

// A segment is closed only when nobody reads in it.
func TestReaderHoldsItsSegment(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, SegmentSize: 500})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	id := storeSome(t, j, 1, 1000)[0]
	storeSome(t, j, 1, 100) // the first segment is finished
	var inside atomic.Bool
	disk.Before(func(op, name string) {
		if op == "read" && !inside.Swap(true) {
			if err := j.Delete(id); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := load(j, id); err != nil || !inside.Load() {
		t.Errorf("read while its segment went: %v", err)
	}
	if _, err := load(j, id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// Many deletions at once need several tombstones; each stays readable.
func TestManyDeletions(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	var ms []Message
	var ids []ID
	for range maxTombstones + 10 {
		ids = append(ids, NewID())
		ms = append(ms, Message{metaOf(ids[len(ids)-1], "mbx-1"), j.NewBody(ids[len(ids)-1])})
	}
	if err := j.Commit(ms...); err != nil {
		t.Fatal(err)
	}
	keep := storeSome(t, j, 1, 10)[0]
	if err := j.Delete(ids...); err != nil {
		t.Fatal(err)
	}
	j.Close()
	k, err := Open("journal", Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if l := k.List("mbx-1"); len(l) != 1 || l[0].ID != keep || len(k.Damaged()) > 0 {
		t.Errorf("%d messages, damage %v", len(l), k.Damaged())
	}
}

// A body file that a deletion takes away under a reader is no damage.
func TestBodyGoesUnderOpen(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, InlineMax: 100, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	id := storeSome(t, j, 1, 1000)[0]
	var once atomic.Bool
	disk.Before(func(op, _ string) {
		if op == "open" && !once.Swap(true) {
			if err := j.Delete(id); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := j.Open(id); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
