package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/disk"
	"msgw/internal/disk/disktest"
)

func storeSome(t *testing.T, j *Journal, n, size int) []ID {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	var ids []ID
	for range n {
		ids = append(ids, NewID())
		if err := store(j, ids[len(ids)-1], "mbx-1", text(rng, size)); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

func TestCommitRefusesAHeldID(t *testing.T) {
	t.Parallel()
	j := openDir(t, t.TempDir(), Options{InlineMax: 100})
	for _, size := range []int{50, 5000} {
		id, b := NewID(), bytes.Repeat([]byte("a"), size)
		if err := store(j, id, "mbx-1", b); err != nil {
			t.Fatal(err)
		}
		if err := store(j, id, "mbx-1", bytes.Repeat([]byte("b"), size)); err == nil {
			t.Error("the same id was stored again")
		}
		if got, err := load(j, id); err != nil || !bytes.Equal(got, b) {
			t.Errorf("the first message was changed: %v", err)
		}
		twice := NewID()
		x, y := j.NewBody(twice), j.NewBody(twice)
		x.Write([]byte("x"))
		y.Write([]byte("y"))
		if err := j.Commit(Message{metaOf(twice, "mbx-1"), x}, Message{metaOf(twice, "mbx-1"), y}); err == nil {
			t.Error("one id for two messages")
		}
		if err := j.Commit(Message{metaOf(NewID(), "mbx-1"), x}); err == nil {
			t.Error("a body under another id than its own")
		}
		if err := j.Commit(Message{metaOf(twice, "mbx-1"), x}); err != nil {
			t.Fatal(err)
		}
		if err := j.Delete(twice); err != nil {
			t.Fatal(err)
		}
		if err := j.Commit(Message{metaOf(twice, "mbx-1"), x}); err == nil {
			t.Error("a body twice")
		}
	}
}

// gate holds the flushes of a disk until it is opened.
type gate struct {
	disk.FS
	mu      sync.Mutex
	open    chan struct{} // nil: open
	waiting chan struct{}
	largest atomic.Int64 // write
}

type gatedFile struct {
	disk.File
	g *gate
}

func (g *gate) Create(name string) (disk.File, error) {
	f, err := g.FS.Create(name)
	if err != nil {
		return nil, err
	}
	return gatedFile{f, g}, nil
}

func (f gatedFile) WriteAt(p []byte, at int64) (int, error) {
	f.g.largest.Store(max(f.g.largest.Load(), int64(len(p))))
	return f.File.WriteAt(p, at)
}

func (f gatedFile) Sync() error {
	f.g.mu.Lock()
	open := f.g.open
	f.g.mu.Unlock()
	if open != nil {
		f.g.waiting <- struct{}{}
		<-open
	}
	return f.File.Sync()
}

func TestClosed(t *testing.T) {
	t.Parallel()
	j := openDir(t, t.TempDir(), Options{InlineMax: 100})
	ids := append(storeSome(t, j, 1, 50), storeSome(t, j, 1, 1000)...)
	early := j.NewBody(NewID())
	early.Write(make([]byte, 1000)) // a transfer under way
	j.Close()
	early.Write(make([]byte, 1000))
	if err := j.Commit(Message{metaOf(early.id, "mbx-1"), early}); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit: %v", err)
	}
	early.Discard()
	for _, id := range ids {
		if _, err := j.Open(id); !errors.Is(err, ErrClosed) {
			t.Errorf("Open: %v", err)
		}
		if err := j.Delete(id); !errors.Is(err, ErrClosed) {
			t.Errorf("Delete: %v", err)
		}
	}
	if err := store(j, NewID(), "mbx-1", []byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("store: %v", err)
	}
	if !errors.Is(j.Err(), ErrClosed) {
		t.Error(j.Err())
	}
	k := openDir(t, j.dir, Options{})
	if n := len(k.List("mbx-1")); n != 2 || len(k.Damaged()) > 0 {
		t.Errorf("%d messages, damage %v", n, k.Damaged())
	}
}

// A full disk at any step refuses what is being stored, loses nothing, stops
// nothing, and leaves no file behind.
func TestDiskFullAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"mkdir", "create", "write", "rename"} {
		for step := range 12 {
			disk := disktest.New(rand.New(rand.NewPCG(uint64(step), 1)))
			j, err := Open("journal", Options{FS: disk, InlineMax: 100, SegmentSize: 1000, Reserve: 1})
			if err != nil {
				t.Fatal(err)
			}
			left := step
			disk.Fail(func(o, _ string) error {
				if o != op {
					return nil
				}
				if left--; left < 0 {
					return syscall.ENOSPC
				}
				return nil
			})
			want := map[ID][]byte{}
			full := false
			rng := rand.New(rand.NewPCG(uint64(step), 2))
			for i := range 30 {
				id, b := NewID(), text(rng, 50+i%3*1000)
				switch err := store(j, id, "mbx-1", b); {
				case err == nil:
					want[id] = b
				case errors.Is(err, ErrDiskFull):
					full = true
				default:
					t.Fatalf("%s %d: %v", op, step, err)
				}
				if i == 20 {
					disk.Fail(nil)
				} else if i > 20 && err != nil {
					t.Fatalf("%s %d: no end of it: %v", op, step, err)
				}
			}
			if !full && op != "mkdir" {
				t.Errorf("%s %d: the disk was never full", op, step)
			}
			if err := j.Err(); err != nil {
				t.Errorf("%s %d: %v", op, step, err)
			}
			bodies := 0
			for _, b := range want {
				if len(b) > 100 {
					bodies++
				}
			}
			if left := namesIn(disk, filepath.Join("journal", j.origin, bodiesDir)); len(left) != bodies {
				t.Errorf("%s %d: %d bodies of %d messages", op, step, len(left), bodies)
			}
			disk.Crash()
			k, err := Open("journal", Options{FS: disk, Reserve: 1})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(k.List("mbx-1")); n != len(want) || len(k.Damaged()) > 0 {
				t.Errorf("%s %d: %d messages, want %d; damage %v", op, step, n, len(want), k.Damaged())
			}
			for id, b := range want {
				if got, err := load(k, id); err != nil || !bytes.Equal(got, b) {
					t.Errorf("%s %d: %v", op, step, err)
				}
				if err := k.Delete(id); err != nil {
					t.Error(err)
				}
			}
			k.Close()
			j.Close()
			k, err = Open("journal", Options{FS: disk, Reserve: 1})
			if err != nil {
				t.Fatal(err)
			}
			k.Close()
			if d := namesIn(disk, "journal"); len(d) != 0 {
				t.Errorf("%s %d: left behind: %v", op, step, d)
			}
		}
	}
}

// A message of unstated size does not eat the reserve: what keeps it has to be
// there for deletions.
func TestLargeBodyRespectsTheReserve(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, InlineMax: 100, Reserve: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	b := j.NewBody(NewID())
	defer b.Discard()
	if _, err := b.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	disk.SetFree(999)
	if _, err := b.Write(make([]byte, 5000)); !errors.Is(err, ErrDiskFull) {
		t.Errorf("went on below the reserve: %v", err)
	}
}

// The oldest waiting message is the oldest by its time, though the clock was set
// back meanwhile.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{})
	now := time.Now().UTC()
	for i := range 3 {
		m := metaOf(NewID(), "mbx-1")
		m.Received = now.Add(-time.Duration(i) * time.Hour)
		b := j.NewBody(m.ID)
		b.Write([]byte("x"))
		if err := j.Commit(Message{m, b}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		w := j.Waiting()["mbx-1"]
		if w.Messages != 3 || !w.Oldest.Equal(now.Add(-2*time.Hour)) {
			t.Errorf("waiting %+v", w)
		}
		j.Close()
		j = openDir(t, dir, Options{})
	}
}

// A failed flush of a body or its name stops the journal, whatever comes later.
func TestFailedFlushOfABody(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"sync", "syncdir"} {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		j, err := Open("journal", Options{FS: disk, InlineMax: 100, Reserve: 1})
		if err != nil {
			t.Fatal(err)
		}
		storeSome(t, j, 1, 50)
		storeSome(t, j, 1, 1000)
		once := true
		disk.Fail(func(o, name string) error {
			if o == op && once && strings.Contains(name, bodiesDir) {
				once = false
				return syscall.EIO
			}
			return nil
		})
		b := j.NewBody(NewID()) // begun before, ended after
		b.Write(make([]byte, 1000))
		for _, size := range []int{1000, 50, 1000} {
			if err := store(j, NewID(), "mbx-1", make([]byte, size)); !errors.Is(err, ErrFailed) {
				t.Errorf("%s: %v", op, err)
			}
		}
		b.Write(make([]byte, 1000))
		if err := j.Commit(Message{metaOf(b.id, "mbx-1"), b}); !errors.Is(err, ErrFailed) {
			t.Errorf("%s: %v", op, err)
		}
		b.Discard()
		disk.Crash()
		k, err := Open("journal", Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(k.List("mbx-1")); n != 2 || len(k.Damaged()) > 0 {
			t.Errorf("%s: %d messages, damage %v", op, n, k.Damaged())
		}
		k.Close()
		j.Close()
	}
}

// A record whose flush failed may be on the disk: its body must not be removed.
func TestBodyOutlivesAFailedFlush(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		disk := disktest.New(rand.New(rand.NewPCG(seed, 1)))
		j, err := Open("journal", Options{FS: disk, InlineMax: 100, Reserve: 1})
		if err != nil {
			t.Fatal(err)
		}
		disk.Fail(func(o, name string) error {
			if o == "sync" && strings.HasSuffix(name, segmentSuffix) {
				return syscall.EIO
			}
			return nil
		})
		if err := store(j, NewID(), "mbx-1", make([]byte, 1000)); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
		disk.Crash()
		k, err := Open("journal", Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		if d := k.Damaged(); len(d) > 0 {
			t.Fatalf("seed %d: %v", seed, d)
		}
		for _, m := range k.List("mbx-1") {
			if _, err := load(k, m.ID); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
		k.Close()
		j.Close()
	}
}

// What a full disk refused is never seen again, though part of it was written and
// the power fails in the next moment.
func TestRefusedStaysRefused(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		disk := disktest.New(rand.New(rand.NewPCG(seed, 1)))
		j, err := Open("journal", Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		storeSome(t, j, 1, 100)
		disk.Fail(func(o, _ string) error {
			if o == "write" {
				return syscall.ENOSPC
			}
			return nil
		})
		var ms []Message
		for range 10 {
			id := NewID()
			ms = append(ms, Message{metaOf(id, "mbx-1"), j.NewBody(id)})
		}
		if err := j.Commit(ms...); !errors.Is(err, ErrDiskFull) {
			t.Fatal(err)
		}
		disk.Crash()
		k, err := Open("journal", Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(k.List("mbx-1")); n != 1 || len(k.Damaged()) > 0 {
			t.Fatalf("seed %d: %d messages, damage %v", seed, n, k.Damaged())
		}
		k.Close()
		j.Close()
	}
}

// One flush takes a bounded number of octets, however many wait.
func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	g := &gate{FS: disk, open: make(chan struct{}), waiting: make(chan struct{}, 100)}
	j, err := Open("journal", Options{FS: g, InlineMax: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	const n, size = 16, 1 << 20
	var wg sync.WaitGroup
	wg.Go(func() { store(j, NewID(), "mbx-1", []byte("first")) })
	<-g.waiting // its flush hangs
	for range n {
		wg.Go(func() {
			if err := store(j, NewID(), "mbx-1", make([]byte, size)); err != nil {
				t.Error(err)
			}
		})
	}
	for queued := 0; queued < n; {
		time.Sleep(time.Millisecond)
		j.mu.Lock()
		queued = len(j.waiting)
		j.mu.Unlock()
	}
	close(g.open)
	wg.Wait()
	j.Close()
	if most := g.largest.Load(); most > maxBatch+size+1000 {
		t.Errorf("%d octets in one write", most)
	}
}

// A disk that hangs makes the journal say so, until it answers; what waited is
// then stored all the same.
func TestStalledDisk(t *testing.T) {
	t.Parallel()
	for _, size := range []int{50, 1000} { // in the segment, in its own file
		synctest.Test(t, func(t *testing.T) {
			disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
			g := &gate{FS: disk, open: make(chan struct{}), waiting: make(chan struct{}, 10)}
			j, err := Open("journal", Options{FS: g, InlineMax: 100})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- store(j, NewID(), "mbx-1", make([]byte, size)) }()
			<-g.waiting
			time.Sleep(StallTime)
			if err := j.Err(); err != nil {
				t.Errorf("too early: %v", err)
			}
			time.Sleep(time.Second)
			if err := j.Err(); !errors.Is(err, ErrStalled) {
				t.Errorf("after %v: %v", StallTime, err)
			}
			close(g.open)
			if err := <-done; err != nil {
				t.Error(err)
			}
			if err := j.Err(); err != nil {
				t.Errorf("after it answered: %v", err)
			}
			j.Close()
		})
	}
}
