package journal

import (
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"math/rand/v2"

	"msgw/internal/disk"
	"msgw/internal/disk/disktest"
)

// sink is a disk that keeps nothing of what is written.
type sink struct {
	disk.FS
	octets  atomic.Int64
	largest atomic.Int64 // write
}

type sinkFile struct{ s *sink }

func (s *sink) Create(string) (disk.File, error) { return sinkFile{s}, nil }
func (s *sink) Remove(string) error              { return nil }
func (s *sink) Open(string) (disk.File, error)   { return nil, fs.ErrNotExist }

func (f sinkFile) WriteAt(p []byte, _ int64) (int, error) {
	f.s.octets.Add(int64(len(p)))
	f.s.largest.Store(max(f.s.largest.Load(), int64(len(p))))
	return len(p), nil
}
func (sinkFile) ReadAt([]byte, int64) (int, error) { return 0, fs.ErrInvalid }
func (sinkFile) Close() error                      { return nil }
func (sinkFile) Sync() error                       { return nil }
func (sinkFile) Truncate(int64) error              { return nil }
func (sinkFile) Allocate(int64) error              { return nil }
func (sinkFile) Size() (int64, error)              { return 0, nil }

// 64 messages that arrive at once take InlineMax each and no more, however large they
// get. Here they get to 16 MiB; nothing depends on the size behind InlineMax.
func TestMemoryOfLargeBodies(t *testing.T) {
	const bodies, inline, each = 64, 256 << 10, 16 << 20 / slow
	s := &sink{FS: disktest.New(rand.New(rand.NewPCG(1, 1)))}
	j, err := Open("journal", Options{FS: s, InlineMax: inline, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	chunk := make([]byte, 32<<10)
	bs := make([]*Body, bodies)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	grow := func(size int64) int64 {
		for i := range bs {
			for bs[i].size < size {
				if _, err := bs[i].Write(chunk); err != nil {
					t.Fatal(err)
				}
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		return int64(after.HeapAlloc) - int64(before.HeapAlloc)
	}
	for i := range bs {
		bs[i] = j.NewBody(NewID())
	}
	if got := grow(inline); got > bodies*inline*3/2 {
		t.Errorf("%d octets for bodies that fit", got)
	}
	if got := grow(each); got > bodies*4<<10 {
		t.Errorf("%d octets for bodies that went to files", got)
	}
	if n, l := s.octets.Load(), s.largest.Load(); n != bodies*each || l > inline {
		t.Errorf("%d octets written, %d at once", n, l)
	}
	for _, b := range bs {
		b.Discard()
	}
}

// slowBodies holds up flushes of body files.
type slowBodies struct {
	disk.FS
	hold    chan struct{}
	waiting chan struct{}
}

type slowBody struct {
	disk.File
	d *slowBodies
}

func (d *slowBodies) Create(name string) (disk.File, error) {
	f, err := d.FS.Create(name)
	if err == nil && strings.Contains(name, bodiesDir) {
		return slowBody{f, d}, nil
	}
	return f, err
}

func (f slowBody) Sync() error {
	f.d.waiting <- struct{}{}
	<-f.d.hold
	return f.File.Sync()
}

// Large bodies whose flush takes its time hold up no small message, no deletion and no
// other large one before its own flush.
func TestLargeBodiesHoldUpNobody(t *testing.T) {
	t.Parallel()
	d := &slowBodies{FS: disktest.New(rand.New(rand.NewPCG(1, 1))), hold: make(chan struct{}), waiting: make(chan struct{}, 10)}
	j, err := Open("journal", Options{FS: d, InlineMax: 1000, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := store(j, NewID(), "mbx-1", make([]byte, 100_000)); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		<-d.waiting
	}
	done := make(chan error)
	go func() { done <- j.Delete(storeSome(t, j, 50, 500)...) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("small messages wait for the flush of large ones")
	}
	if n := len(j.List("mbx-1")); n != 0 {
		t.Errorf("%d messages are listed before they are durable", n)
	}
	close(d.hold)
	wg.Wait()
	if n := len(j.List("mbx-1")); n != 4 {
		t.Errorf("%d of 4 large messages", n)
	}
}
