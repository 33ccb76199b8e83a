package shadow

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
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
func line(wg *sync.WaitGroup, a, b net.Conn, delay time.Duration) {
	type parcel struct {
		octets []byte
		due    time.Time
	}
	way := func(dst, src net.Conn) {
		under := make(chan parcel, 1<<12)
		wg.Go(func() {
			defer close(under)
			buf := make([]byte, 64<<10)
			for {
				n, err := src.Read(buf)
				if err != nil {
					return
				}
				under <- parcel{bytes.Clone(buf[:n]), time.Now().Add(delay)}
			}
		})
		defer dst.Close()
		for p := range under {
			time.Sleep(time.Until(p.due))
			_, _ = dst.Write(p.octets) // the reader sees what is broken
		}
	}
	wg.Go(func() { way(a, b) })
	wg.Go(func() { way(b, a) })
}

// farPair is a pair whose sites are a time apart, each way, and whose flushes take one.
func farPair(t *testing.T, apart, flush time.Duration) *pair {
	p := newPair(t)
	open := func(dir string) *journal.Journal {
		j, err := journal.Open(dir, journal.Options{KeepGraves: true, FS: slowDisk{flush: flush}, Log: quiet(), Reserve: 1})
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
	var lines, wg sync.WaitGroup
	dial := func(ctx context.Context) (net.Conn, error) {
		time.Sleep(2 * apart)
		ours, near := net.Pipe()
		theirs, far := net.Pipe()
		line(&lines, near, far, apart)
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
		lines.Wait()
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
	for _, senders := range []int{1, 16} {
		t.Run(fmt.Sprint(senders), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { oneRoundTrip(t, senders) })
		})
	}
}

func oneRoundTrip(t *testing.T, senders int) {
	const apart, flush = 10 * time.Millisecond, time.Millisecond
	p := farPair(t, apart, flush)
	p.becomes(Sync, 5*time.Second)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	began := time.Now()
	var wg sync.WaitGroup
	for sender := range senders {
		r := rand.New(rand.NewPCG(seed, uint64(sender)))
		wg.Go(func() {
			for n := range uint64(600 / senders) {
				size := []int{1, 6000, 75_000, inlineMax}[r.IntN(4)]
				start := time.Now()
				id, err := p.give(true, n, size)
				// The flush before at each site, and one's own.
				if took := time.Since(start); err != nil || took < 2*apart || took > 2*apart+4*flush {
					t.Errorf("after %v: a message of %d octets took %v: %v", start.Sub(began), size, took, err)
				}
				switch r.IntN(3) {
				case 0: // the archive is busy meanwhile
					if err := p.own.Delete(id); err != nil {
						t.Error(err)
					}
					p.ship.Deleted(id)
				case 1:
					time.Sleep(time.Duration(r.IntN(100_000)) * time.Microsecond)
				}
			}
		})
	}
	wg.Wait()
}

// A large message that is sent after it was stored here is sent at once.
func TestStoredIsSentAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := farPair(t, 10*time.Millisecond, time.Millisecond)
		p.becomes(Sync, 5*time.Second)
		for range maxLarge {
			b := p.ship.NewBody(journal.NewID())
			defer b.Discard()
			if _, err := b.Write(octets(0, inlineMax+1)); err != nil {
				t.Fatal(err)
			}
		}
		// A connection and the message: a round trip each.
		start := time.Now()
		if _, err := p.give(true, 1, 600_000); err != nil || time.Since(start) > 50*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// While there is no other site nothing is kept for it, and nothing is called missing. One
// that comes while a message is under way gets it.
func TestAloneKeepsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.startHolder()
		var comes atomic.Bool
		p.own = p.openJournal(p.ownerDir, p.ownerDisk)
		var err error
		p.ship, err = Open(Options{Own: p.own, Dir: p.ownerDir, Log: quiet(), Dial: func(ctx context.Context) (net.Conn, error) {
			if !comes.Load() {
				return nil, ErrAlone
			}
			return p.dial(ctx)
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { p.ship.Run(ctx) })
		p.stopOwner = func() {
			cancel()
			wg.Wait()
			if err := p.own.Close(); err != nil {
				t.Error(err)
			}
		}
		p.becomes(Alone, 5*time.Second)
		for n, size := range []int{0, 10, 75_000, 600_000} {
			holds(t, p.own, p.must(uint64(n), size), uint64(n), size)
		}
		time.Sleep(time.Minute)
		if ids, _ := p.ship.Single(); len(ids) != 0 {
			t.Errorf("%d messages are missing at a site that is not there", len(ids))
		}
		var late []Message
		for n, size := range []int{10, 600_000} {
			id := journal.NewID()
			b := p.ship.NewBody(id)
			if _, err := b.Write(octets(uint64(n), size)); err != nil {
				t.Fatal(err)
			}
			if b.parts != nil || b.stream != nil {
				t.Error("octets are kept for nobody")
			}
			late = append(late, Message{journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now()}, b})
		}
		comes.Store(true)
		p.becomes(Sync, 5*time.Second)
		if copies, err := p.ship.Commit(t.Context(), true, late...); copies != 2 || err != nil {
			t.Errorf("%d copies, %v", copies, err)
		}
		for n, size := range []int{10, 600_000} {
			holds(t, p.held, late[n].Meta.ID, uint64(n), size)
		}
	})
}
