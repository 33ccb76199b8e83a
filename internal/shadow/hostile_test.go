package shadow

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/journal"
)

// holderOnly serves a holder over a connection that the test speaks itself.
func holderOnly(t *testing.T) (p *pair, dial func() net.Conn) {
	p = newPair(t)
	p.startHolder()
	return p, func() net.Conn {
		c, err := p.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func metaOf(t testing.TB, id journal.ID, content []byte) []byte {
	m := journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Unix(1e9, 0), Sealed: int64(len(content))}
	m.SHA256 = sha256.Sum256(content)
	head, err := journal.AppendMeta(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func putPayload(t testing.TB, id journal.ID, content []byte) []byte {
	head := metaOf(t, id, content)
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(head))), head...), content...)
}

// A large message that still comes in over a connection that was lost may be sent again
// over another one at once.
func TestLargeMessageIsTakenOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, dial := holderOnly(t)
		id, content := journal.NewID(), octets(1, 600_000)
		begun := appendFrame(nil, kindBegin, 1, id[:])
		for part := content; len(part) > 0; part = part[200_000:] {
			begun = appendFrame(begun, kindChunk, 1, part[:200_000])
		}
		lost, again := dial(), dial()
		if _, err := lost.Write(begun); err != nil {
			t.Fatal(err)
		}
		if _, err := again.Write(appendFrame(begun, kindCommit, 1, metaOf(t, id, content))); err != nil {
			t.Fatal(err)
		}
		f, _, err := readFrame(bufio.NewReader(again), nil)
		if err != nil || f.kind != kindDone {
			t.Fatalf("%d %q: %v", f.kind, f.payload, err)
		}
		holds(t, p.held, id, 1, 600_000)
	})
}

// A deletion is done only when the copy that is just being stored is gone as well.
func TestDropWaitsForWhatIsBeingStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, _ := holderOnly(t)
		release := make(chan struct{})
		p.holderDisk.set(func() { p.holderDisk.held = release })
		id := journal.NewID()
		stored, dropped := make(chan error, 1), make(chan error, 1)
		go func() { stored <- p.holder.put(putPayload(t, id, octets(1, 1000))) }()
		synctest.Wait()
		go func() {
			_, err := p.holder.drop(id[:], nil)
			dropped <- err
		}()
		synctest.Wait()
		if len(dropped) > 0 {
			t.Error("dropped before it was stored")
		}
		close(release)
		if err := errors.Join(<-stored, <-dropped); err != nil {
			t.Error(err)
		}
		if _, ok := p.held.Has(id); ok {
			t.Error("it is held")
		}
		if err := p.holder.put(putPayload(t, id, octets(1, 1000))); !errors.Is(err, journal.ErrDeleted) {
			t.Errorf("after its deletion: %v", err)
		}
	})
}

func TestDroppedIsBounded(t *testing.T) {
	t.Parallel()
	var d dropped
	now := time.Now()
	id := func(n int) (id journal.ID) {
		binary.BigEndian.PutUint64(id[:], uint64(n))
		return id
	}
	for n := range 2 * maxDropped {
		d.add([]journal.ID{id(n)}, now)
	}
	if n := len(d.new) + len(d.old); n > maxDropped {
		t.Errorf("%d ids are remembered", n)
	}
	last := id(2*maxDropped - 1)
	if !d.has(last, now.Add(dropMemory-time.Second)) {
		t.Error("forgotten too early")
	}
	if d.has(last, now.Add(2*dropMemory)) {
		t.Error("never forgotten")
	}
}

// Accept may fail for a while. The holder goes on.
func TestServeGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, err := OpenHolder(HolderOptions{Dir: t.TempDir(), Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		l := &failingListener{pipeListener: pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}, failures: 3}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Serve(ctx, l) }()
		ours, theirs := net.Pipe()
		l.conns <- theirs
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		ours.Close()
		// A listener that somebody else closes ends it, with the connections that are open.
		l = &failingListener{pipeListener: pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}}
		go func() { done <- h.Serve(t.Context(), l) }()
		ours, theirs = net.Pipe()
		l.conns <- theirs
		l.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		ours.Close()
	})
}

type failingListener struct {
	pipeListener
	failures int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, errors.New("too many open files")
	}
	return l.pipeListener.Accept()
}

// A connection that is slow, and makes progress, is not cut off.
func TestSlowConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		l := newLane(ours, func() {})
		go func() {
			buf := make([]byte, 32<<10)
			for {
				if _, err := theirs.Read(buf); err != nil {
					return
				}
				time.Sleep(time.Second / 2)
			}
		}()
		for range 8 {
			if err := l.out.send(kindChunk, 1, make([]byte, 512<<10)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(55 * time.Second)
		if l.err != nil {
			t.Error(l.err)
		}
		l.close()
		time.Sleep(time.Second) // the other end sees it
	})
}

// Parts of an answer are not handed over to somebody who has gone.
func TestPartsAfterTheEnd(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	l := newLane(ours, func() {})
	defer l.close()
	go func() { _, _, _ = readFrame(bufio.NewReader(theirs), nil) }()
	ctx, cancel := context.WithCancel(t.Context())
	gone := false
	go func() {
		for range 100 {
			_, _ = theirs.Write(appendFrame(nil, kindData, 1, []byte("a part")))
		}
	}()
	_, err := l.ask(ctx, kindGet, func([]byte) error {
		cancel()
		time.Sleep(time.Millisecond)
		if gone { // the race detector sees it as well
			t.Error("a part is handed over, and nobody waits")
		}
		return nil
	})
	gone = true
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	time.Sleep(20 * time.Millisecond)
}

// ownerOnly is a Shipper with a link whose other end the test speaks.
func ownerOnly(t *testing.T, answer func(f frame) []byte) (*pair, *link) {
	p := newPair(t)
	p.network(refused)
	p.startOwner()
	ours, theirs := net.Pipe()
	l := &link{main: newLane(ours, func() {}), lanes: map[*lane]struct{}{}}
	go func() {
		defer theirs.Close()
		for r := bufio.NewReader(theirs); ; {
			f, _, err := readFrame(r, nil)
			if err != nil {
				return
			}
			if _, err := theirs.Write(answer(f)); err != nil {
				return
			}
		}
	}()
	t.Cleanup(l.close)
	return p, l
}

// A link alone says nothing of what the sites hold.
func TestNoSyncBeforeComparing(t *testing.T) {
	t.Parallel()
	p, l := ownerOnly(t, func(frame) []byte { return nil })
	s := p.ship
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link, s.heard = l, time.Now()
	for _, c := range []struct {
		set  func()
		want State
	}{{func() {}, CatchUp}, {func() { s.compared = true }, Sync}, {func() { s.lost = 1 }, CatchUp}, {func() { s.lost = 0 }, Sync},
		{func() { s.missing[journal.ID{}] = struct{}{} }, CatchUp}} {
		c.set()
		if s.judge(time.Now()); s.state.State != c.want {
			t.Errorf("%s, expected %s", s.state.State, c.want)
		}
	}
	s.link = nil
}

// Nothing is listed before it is known what the other site has handed over.
func TestListableAfterGraves(t *testing.T) {
	t.Parallel()
	var p *pair
	var asked []kind
	p, l := ownerOnly(t, func(f frame) []byte {
		if asked = append(asked, f.kind); p.ship.Listable() {
			t.Errorf("listable at kind %d", f.kind)
		}
		return appendFrame(nil, kindDone, f.request)
	})
	if err := p.ship.takeBack(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if !p.ship.Listable() || !slices.Equal(asked, []kind{kindReturn, kindGraves}) {
		t.Errorf("%v", asked)
	}
}

// An answer that never comes holds nothing up for ever.
func TestAnswerNeverComes(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(refused)
		id := p.must(1, 1000)
		release := make(chan struct{})
		p.holderDisk.set(func() { p.holderDisk.held = release })
		start := time.Now()
		err := p.ship.sendStored(t.Context(), &link{main: func() *lane {
			p.network(whole)
			c, err := p.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return newLane(c, func() {})
		}()}, id)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		close(release)
		p.becomes(Sync, 2*time.Minute)
	})
}

// What the other site says of a bucket or a message is bounded.
func TestBucketIsItsOwn(t *testing.T) {
	t.Parallel()
	p, l := ownerOnly(t, func(f frame) []byte { return appendFrame(nil, kindData, f.request, make([]byte, 48)) })
	if _, err := p.ship.compareBucket(t.Context(), l, 1); !errors.Is(err, errFrame) {
		t.Errorf("another bucket's id: %v", err)
	}
}

// What is being stored at this moment is no loss, and what is confirmed twice is
// confirmed.
func TestBeingStoredIsNoLoss(t *testing.T) {
	t.Parallel()
	id := journal.ID{1}
	p, l := ownerOnly(t, func(f frame) []byte {
		if f.kind != kindBucket {
			t.Errorf("kind %d was asked for", f.kind)
			return appendFrame(nil, kindFail, f.request, []byte{255})
		}
		b := appendFrame(nil, kindData, f.request, append(id[:], make([]byte, 32)...))
		return appendFrame(b, kindDone, f.request)
	})
	tickets, err := p.ship.take([]Message{{Meta: journal.Meta{ID: id}}})
	if err != nil {
		t.Fatal(err)
	}
	if lost, err := p.ship.compareBucket(t.Context(), l, 1); err != nil || lost > 0 {
		t.Errorf("%d lost: %v", lost, err)
	}
	p.ship.answered(id, nil)
	p.ship.answered(id, nil)
	<-tickets[0].held
}

func TestBucketIsBounded(t *testing.T) {
	t.Parallel()
	part := make([]byte, 0, 48*20_000)
	p, l := ownerOnly(t, func(f frame) []byte {
		var b []byte
		for n := range maxBucket + 1 {
			e := make([]byte, 48)
			e[0] = f.payload[0]
			binary.BigEndian.PutUint32(e[1:], uint32(n))
			if part = append(part, e...); len(part) == cap(part) {
				b, part = appendFrame(b, kindData, f.request, part), part[:0]
			}
		}
		return appendFrame(b, kindData, f.request, part)
	})
	if _, err := p.ship.compareBucket(t.Context(), l, 1); !errors.Is(err, errFrame) {
		t.Errorf("%v", err)
	}
}

func TestMessageIsBounded(t *testing.T) {
	t.Parallel()
	id := journal.NewID()
	p, l := ownerOnly(t, func(f frame) []byte {
		b := appendFrame(nil, kindData, f.request, metaOf(t, id, octets(1, 1000)))
		return appendFrame(b, kindData, f.request, octets(1, 1001))
	})
	if _, err := p.ship.fetch(t.Context(), l, id); !errors.Is(err, errFrame) {
		t.Errorf("%v", err)
	}
}

func TestRefusalIsBounded(t *testing.T) {
	t.Parallel()
	err := decodeError([]byte("\xff" + strings.Repeat("x", maxPayload-1)))
	if n := len(err.Error()); !errors.Is(err, errRefused) || n > 2*maxText {
		t.Errorf("%d octets", n)
	}
}

// Whatever an owner sends, the holder neither breaks nor keeps the connection's
// goroutines, and what it lists has the SHA-256 that it states.
func FuzzReceiver(f *testing.F) {
	id, content := journal.ID{1}, []byte("some octets")
	f.Add(appendFrame(nil, kindPut, 1, putPayload(f, id, content)))
	large := appendFrame(nil, kindBegin, 2, id[:])
	large = appendFrame(appendFrame(large, kindChunk, 2, content), kindCommit, 2, metaOf(f, id, content))
	f.Add(append(large, appendFrame(nil, kindGet, 3, id[:])...))
	f.Add(appendFrame(appendFrame(nil, kindDrop, 1, id[:]), kindGraves, 2))
	f.Add(appendFrame(appendFrame(nil, kindBegin, 1, id[:]), kindCancel, 1))
	all := []byte{}
	for k := range kind(16) {
		all = appendFrame(all, k, uint32(k), id[:1])
	}
	f.Add(all)
	f.Add([]byte{0, 0, 0, 4, 1, 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0})
	dir := f.TempDir()
	j, err := journal.Open(dir, journal.Options{KeepGraves: true, Log: quiet(), Reserve: 1})
	if err != nil {
		f.Fatal(err)
	}
	defer j.Close()
	h, err := OpenHolder(HolderOptions{Held: j, Dir: dir, Log: quiet()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &script{r: bytes.NewReader(b)}
		if err := newReceiver(h, c).run(); err == nil {
			t.Error("ended without an error")
		}
		if len(h.storing)+len(h.coming) > 0 {
			t.Errorf("%d and %d are left", len(h.storing), len(h.coming))
		}
	})
}

// Whatever a holder answers, the lane ends, and everybody who waits gets an answer.
func FuzzLane(f *testing.F) {
	f.Add(appendFrame(nil, kindDone, 1, []byte("answer")))
	f.Add(appendFrame(appendFrame(nil, kindData, 2, []byte("part")), kindDone, 2))
	f.Add(appendFrame(appendFrame(nil, kindFail, 1, []byte{1, 'x'}), kindFail, 2))
	f.Add(appendFrame(nil, kindData, 1))
	f.Add(appendFrame(nil, 99, 1))
	f.Add([]byte{0, 0, 0, 5, 64})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &script{r: bytes.NewReader(b), wait: make(chan struct{})}
		l := newLane(c, func() {})
		_, one, err := l.begin(nil)
		if err != nil {
			t.Fatal(err)
		}
		n, two, err := l.begin(func([]byte) error { return nil })
		if err != nil || n != 2 {
			t.Fatal(n, err)
		}
		close(c.wait)
		<-l.done
		<-one.result
		<-two.result
		if _, _, err := l.begin(nil); !errors.Is(err, ErrLink) {
			t.Error(err)
		}
		l.close()
	})
}

// script is a connection with fixed octets to be read.
type script struct {
	net.Conn
	r    *bytes.Reader
	wait chan struct{} // reading waits until it is closed; may be nil
}

func (s *script) Read(p []byte) (int, error) {
	if s.wait != nil {
		<-s.wait
	}
	return s.r.Read(p)
}
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
