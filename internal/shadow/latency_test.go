package shadow

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/disk"
	"msgw/internal/journal"
)

// slowDisk is a disk whose flushes take a time.
type slowDisk struct {
	disk.OS
	flush time.Duration
}

func (d slowDisk) Create(name string) (disk.File, error) {
	f, err := d.OS.Create(name)
	return slowFile{f, d.flush}, err
}

func (d slowDisk) Open(name string) (disk.File, error) {
	f, err := d.OS.Open(name)
	return slowFile{f, d.flush}, err
}

type slowFile struct {
	disk.File
	flush time.Duration
}

func (f slowFile) Sync() error {
	time.Sleep(f.flush)
	return f.File.Sync()
}

// line joins two connections; every octet takes a time each way, and what was sent
// before does not hold it up.
func line(a, b net.Conn, delay time.Duration) {
	type parcel struct {
		octets []byte
		due    time.Time
	}
	way := func(dst, src net.Conn) {
		under := make(chan parcel, 1<<12)
		go func() {
			defer close(under)
			buf := make([]byte, 64<<10)
			for {
				n, err := src.Read(buf)
				if err != nil {
					return
				}
				under <- parcel{bytes.Clone(buf[:n]), time.Now().Add(delay)}
			}
		}()
		defer dst.Close()
		for p := range under {
			time.Sleep(time.Until(p.due))
			_, _ = dst.Write(p.octets) // the reader sees what is broken
		}
	}
	go way(a, b)
	go way(b, a)
}

// farPair is a pair whose sites are a time apart, each way, and whose flushes take one.
func farPair(t *testing.T, apart, flush time.Duration) *pair {
	p := newPair(t)
	open := func(dir string) *journal.Journal {
		j, err := journal.Open(filepath.Join(dir), journal.Options{KeepGraves: true, FS: slowDisk{flush: flush}, Log: quiet(), Reserve: 1})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	p.own, p.held = open(t.TempDir()), open(t.TempDir())
	var err error
	if p.holder, err = OpenHolder(HolderOptions{Held: p.held, Dir: p.holderDir, Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	dial := func(ctx context.Context) (net.Conn, error) {
		time.Sleep(2 * apart)
		ours, near := net.Pipe()
		theirs, far := net.Pipe()
		line(near, far, apart)
		select {
		case l.conns <- theirs:
			return ours, nil
		case <-ctx.Done():
			ours.Close()
			theirs.Close()
			return nil, ctx.Err()
		}
	}
	if p.ship, err = Open(Options{Own: p.own, Dial: dial, Dir: p.ownerDir, Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.ship.Run(ctx) })
	wg.Go(func() { p.holder.Run(ctx) })
	wg.Go(func() {
		if err := p.holder.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, j := range []*journal.Journal{p.own, p.held} {
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

// A message costs one round trip and what the disks take, whatever else the sites have to
// say to each other meanwhile.
func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const apart, flush = 10 * time.Millisecond, time.Millisecond
		p := farPair(t, apart, flush)
		p.becomes(Sync, 5*time.Second)
		r := rand.New(rand.NewPCG(1, 2))
		var waits []time.Duration
		for n := range uint64(2000) {
			start := time.Now()
			id := p.must(n, 6000)
			waits = append(waits, time.Since(start))
			if n%3 == 0 { // the archive is busy meanwhile
				if err := p.own.Delete(id); err != nil {
					t.Fatal(err)
				}
				p.ship.Deleted(id)
			}
			if n%2 == 0 {
				time.Sleep(time.Duration(r.IntN(30_000)) * time.Microsecond)
			}
		}
		slices.Sort(waits)
		t.Logf("median %v, longest %v", waits[len(waits)/2], waits[len(waits)-20:])
	})
}
