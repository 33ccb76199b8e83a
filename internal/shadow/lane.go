package shadow

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// outbox writes frames to a connection, all that wait with one call: while one write
// runs, the next frames gather.
type outbox struct {
	w    io.WriteCloser
	wake chan struct{} // closed when err is set
	done chan struct{} // closed when the writing has ended

	mu      sync.Mutex
	pending []byte
	err     error
	room    *sync.Cond // pending has become shorter, or err is set
}

// maxPending bounds what waits to be written on one connection.
const maxPending = 4 << 20

func newOutbox(w io.WriteCloser) *outbox {
	o := &outbox{w: w, wake: make(chan struct{}, 1), done: make(chan struct{})}
	o.room = sync.NewCond(&o.mu)
	go o.run()
	return o
}

// send queues a frame. It waits while too much is queued, which the write deadline
// of the connection ends.
func (o *outbox) send(k kind, request uint32, parts ...[]byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.err == nil && len(o.pending) > maxPending {
		o.room.Wait()
	}
	if o.err != nil {
		return o.err
	}
	o.pending = appendFrame(o.pending, k, request, parts...)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

func (o *outbox) run() {
	defer close(o.done)
	var spare []byte
	for range o.wake {
		o.mu.Lock()
		if len(o.pending) == 0 {
			o.mu.Unlock()
			continue // an earlier write took it along
		}
		batch := o.pending
		o.pending, spare = spare[:0], nil // one is written while the other is filled
		o.room.Broadcast()
		o.mu.Unlock()
		if _, err := o.w.Write(batch); err != nil {
			o.end(err)
			o.w.Close() // so that the reader does not wait for what cannot come
			return
		}
		if spare = batch; cap(spare) > maxPending {
			spare = nil
		}
	}
}

// end lets nothing more be sent, and ends the writing once what is queued was written.
func (o *outbox) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
		close(o.wake)
		o.room.Broadcast()
	}
}

var errClosed = errors.New("connection is closed")

// close waits until what is queued was written, or cannot be. The caller closes the
// connection afterwards.
func (o *outbox) close() {
	o.end(errClosed)
	<-o.done
}

// lane is one connection to the holder. Requests on it are answered in any order.
type lane struct {
	conn net.Conn
	out  *outbox
	done chan struct{} // closed when the connection has ended
	wg   sync.WaitGroup

	mu      sync.Mutex
	next    uint32
	waiting map[uint32]*call
	err     error
}

// call is a request under way.
type call struct {
	data   func([]byte) error // takes the parts of a long answer; may be nil
	result chan error         // of size 1
	answer []byte

	mu   sync.Mutex // held while data runs
	over bool       // data is not to be called any more
}

// newLane takes over a fresh connection. heard is called for whatever arrives.
func newLane(c net.Conn, heard func()) *lane {
	t := timedConn{c, laneIdle, laneWrite}
	l := &lane{conn: c, out: newOutbox(t), done: make(chan struct{}), waiting: map[uint32]*call{}}
	l.wg.Go(func() { l.read(bufio.NewReaderSize(t, 64<<10), heard) })
	l.wg.Go(l.keepAlive)
	return l
}

// keepAlive sees to it that a lane is not taken for dead while nobody uses it, or while
// a large message comes in slowly.
func (l *lane) keepAlive() {
	t := time.NewTicker(laneIdle / 3)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			_, _ = l.ask(context.Background(), kindPing, nil) // ends with the lane
		case <-l.done:
			return
		}
	}
}

func (l *lane) read(r *bufio.Reader, heard func()) {
	defer close(l.done)
	var buf []byte
	for {
		f, b, err := readFrame(r, buf)
		if err != nil {
			l.fail(err)
			return
		}
		buf = b
		heard()
		if err := l.take(f); err != nil {
			l.fail(err)
			return
		}
	}
}

// take gives a frame to the request that it answers.
func (l *lane) take(f frame) error {
	l.mu.Lock()
	c := l.waiting[f.request]
	if c != nil && f.kind != kindData {
		delete(l.waiting, f.request)
	}
	l.mu.Unlock()
	if c == nil {
		return fmt.Errorf("%w: an answer to nothing", errFrame)
	}
	switch f.kind {
	case kindData:
		if c.data == nil {
			return fmt.Errorf("%w: an answer in parts, not asked for", errFrame)
		}
		return c.part(f.payload)
	case kindDone:
		c.answer = append([]byte(nil), f.payload...)
		c.result <- nil
	case kindFail:
		c.result <- decodeError(f.payload)
	default:
		c.result <- fmt.Errorf("%w: kind %d", errFrame, f.kind)
	}
	return nil
}

// fail ends the lane: everything under way is answered with ErrLink.
func (l *lane) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = fmt.Errorf("%w: %w", ErrLink, err)
	}
	waiting := l.waiting
	l.waiting = nil
	err = l.err
	l.mu.Unlock()
	l.out.end(err)
	l.conn.Close()
	for _, c := range waiting {
		c.result <- err
	}
}

// begin registers a request and returns its number.
func (l *lane) begin(data func([]byte) error) (uint32, *call, error) {
	c := &call{data: data, result: make(chan error, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, nil, l.err
	}
	l.next++
	l.waiting[l.next] = c
	return l.next, c, nil
}

// ask sends a request and waits for its answer. When ctx ends first, the answer is
// still taken from the connection, and dropped.
func (l *lane) ask(ctx context.Context, k kind, data func([]byte) error, parts ...[]byte) ([]byte, error) {
	n, c, err := l.begin(data)
	if err != nil {
		return nil, err
	}
	defer c.end()
	if err := l.out.send(k, n, parts...); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLink, err)
	}
	return c.wait(ctx)
}

// part hands over a part of a long answer, unless nobody waits for it any more.
func (c *call) part(p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil
	}
	return c.data(p)
}

// end waits for data if it runs; it does not run afterwards.
func (c *call) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}

func (c *call) wait(ctx context.Context) ([]byte, error) {
	select {
	case err := <-c.result:
		return c.answer, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// close ends the lane.
func (l *lane) close() {
	l.fail(errClosed)
	l.wg.Wait()
	l.out.close()
}

// pong is what a Holder says of itself.
type pong struct {
	damaged uint32 // copies
	adopted bool
}

// ping asks for a sign of life.
func (l *lane) ping(ctx context.Context, timeout time.Duration) (pong, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	b, err := l.ask(ctx, kindPing, nil)
	if err == nil && len(b) != 5 {
		err = fmt.Errorf("%w: answer of %d octets to a ping", errFrame, len(b))
	}
	if err != nil {
		return pong{}, err
	}
	return pong{binary.BigEndian.Uint32(b), b[4] != 0}, nil
}
