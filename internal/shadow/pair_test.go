package shadow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"msgw/internal/journal"
)

// owner and holder are the two ends of one direction, each with its disk, over a
// network that can be cut.
type pair struct {
	t          *testing.T
	ownerDir   string
	holderDir  string
	ownerDisk  *faultyDisk
	holderDisk *faultyDisk
	bandwidth  int64
	confirm    func() bool
	mu         sync.Mutex
	cut        cut
	conns      []net.Conn
	octets     int64         // that the owner has sent
	accept     chan net.Conn // nil while the holder is down
	ship       *Shipper
	own        *journal.Journal
	stopOwner  func()
	holder     *Holder
	held       *journal.Journal
	stopHolder func()
}

// cut says what the network does.
type cut int

const (
	whole   cut = iota
	refused     // connections break and are refused
	silent      // nothing arrives any more, either way
)

func newPair(t *testing.T) *pair {
	p := &pair{t: t, ownerDir: t.TempDir(), holderDir: t.TempDir(), ownerDisk: &faultyDisk{}, holderDisk: &faultyDisk{}}
	t.Cleanup(func() {
		p.endOwner()
		p.endHolder()
	})
	return p
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (p *pair) openJournal(dir string, d *faultyDisk) *journal.Journal {
	p.t.Helper()
	dir = filepath.Join(dir, "journal")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	j, err := journal.Open(dir, journal.Options{KeepGraves: true, FS: d, Log: quiet(), Reserve: 1})
	if err != nil {
		p.t.Fatal(err)
	}
	return j
}

func (p *pair) startOwner() {
	p.t.Helper()
	p.own = p.openJournal(p.ownerDir, p.ownerDisk)
	var err error
	p.ship, err = Open(Options{Own: p.own, Dial: p.dial, Dir: p.ownerDir, Settings: func() Settings { return Settings{Bandwidth: p.bandwidth} }, Log: quiet()})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.ship.Run(ctx) })
	own := p.own
	p.stopOwner = func() {
		cancel()
		wg.Wait()
		if err := own.Close(); err != nil {
			p.t.Error(err)
		}
	}
}

func (p *pair) endOwner() {
	if p.stopOwner != nil {
		p.stopOwner()
		p.stopOwner = nil
	}
}

func (p *pair) startHolder() {
	p.t.Helper()
	p.held = p.openJournal(p.holderDir, p.holderDisk)
	var err error
	if p.holder, err = OpenHolder(HolderOptions{Held: p.held, Dir: p.holderDir, Confirm: p.confirm, Log: quiet()}); err != nil {
		p.t.Fatal(err)
	}
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	p.mu.Lock()
	p.accept = l.conns
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	h, held := p.holder, p.held
	wg.Go(func() {
		if err := h.Serve(ctx, l); err != nil {
			p.t.Error(err)
		}
	})
	wg.Go(func() { h.Run(ctx) })
	p.stopHolder = func() {
		p.mu.Lock()
		p.accept = nil
		p.mu.Unlock()
		cancel()
		wg.Wait()
		if err := held.Close(); err != nil {
			p.t.Error(err)
		}
	}
}

func (p *pair) endHolder() {
	if p.stopHolder != nil {
		p.stopHolder()
		p.stopHolder = nil
	}
}

// network sets what the network does; a refusal breaks what is there.
func (p *pair) network(c cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut = c; c == refused {
		for _, c := range p.conns {
			c.Close()
		}
		p.conns = nil
	}
}

func (p *pair) how() cut {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cut
}

// carried returns how many octets the owner has sent.
func (p *pair) carried() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.octets
}

func (p *pair) dial(ctx context.Context) (net.Conn, error) {
	p.mu.Lock()
	c, accept := p.cut, p.accept
	p.mu.Unlock()
	if c == silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if c == refused || accept == nil {
		return nil, syscall.ECONNREFUSED
	}
	ours, theirs := net.Pipe()
	select {
	case accept <- theirs:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, ours)
	return &cutConn{ours, p}, nil
}

// cutConn loses what is sent, and hears nothing, while the network is silent.
type cutConn struct {
	net.Conn
	p *pair
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.p.how() == silent {
		return len(b), nil
	}
	n, err := c.Conn.Write(b)
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.octets += int64(n)
	return n, err
}

func (c *cutConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || c.p.how() != silent {
			return n, err
		}
	}
}

type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.IPAddr{} }

// octets are what message n of a size consists of.
func octets(n uint64, size int) []byte {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], n)
	r := rand.NewChaCha8(seed)
	b := make([]byte, size)
	_, _ = r.Read(b)
	return b
}

// give commits message n and returns its id.
func (p *pair) give(strict bool, n uint64, size int) (journal.ID, error) {
	id := journal.NewID()
	b := p.ship.NewBody(id)
	defer b.Discard()
	content := octets(n, size)
	for part := content; len(part) > 0; {
		k := min(len(part), 40_000)
		if _, err := b.Write(part[:k]); err != nil {
			return id, err
		}
		part = part[k:]
	}
	meta := journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now().UTC(), Octets: int64(size)}
	copies, err := p.ship.Commit(p.t.Context(), strict, Message{meta, b})
	if _, held := p.held.Has(id); err == nil && copies == 2 && !held {
		err = errors.New("two copies are claimed, and the other site has none")
	}
	return id, err
}

// plant puts message n under an id into the holder's journal, past the shipper.
func (p *pair) plant(id journal.ID, n uint64, size int) {
	p.t.Helper()
	b := p.held.NewBody(id)
	defer b.Discard()
	_, _ = b.Write(octets(n, size)) // kept in the body, said by Commit
	meta := journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now()}
	if err := p.held.Commit(journal.Message{Meta: meta, Body: b}); err != nil {
		p.t.Fatal(err)
	}
}

// must is give, which must succeed.
func (p *pair) must(n uint64, size int) journal.ID {
	p.t.Helper()
	id, err := p.give(false, n, size)
	if err != nil {
		p.t.Fatalf("message %d: %v", n, err)
	}
	return id
}

// holds checks that a journal holds message n.
func holds(t *testing.T, j *journal.Journal, id journal.ID, n uint64, size int) {
	t.Helper()
	if err := check(j, id, n, size); err != nil {
		t.Error(err)
	}
}

func check(j *journal.Journal, id journal.ID, n uint64, size int) error {
	r, err := j.Open(id)
	if err != nil {
		return err
	}
	defer r.Close()
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Meta.Sealed))
	if err == nil && (!bytes.Equal(got, octets(n, size)) || r.Meta.SHA256 != sha256.Sum256(got)) {
		err = fmt.Errorf("%s: %d octets are not message %d", id, len(got), n)
	}
	return err
}

// becomes waits until the state is s, at most for d.
func (p *pair) becomes(s State, d time.Duration) {
	p.t.Helper()
	for end := time.Now().Add(d); p.ship.Report().State != s; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("not %s within %v: %+v", s, d, p.ship.Report())
		}
	}
}

func (p *pair) within(d time.Duration, what string, ok func() error) {
	p.t.Helper()
	err := errors.New("not tried")
	for end := time.Now().Add(d); err != nil; time.Sleep(10 * time.Millisecond) {
		if err = ok(); err != nil && time.Now().After(end) {
			p.t.Fatalf("not within %v: %s: %v", d, what, err)
		}
	}
}
