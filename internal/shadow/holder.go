package shadow

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"msgw/internal/journal"
)

const (
	// What one connection may have under way: small messages being stored, and large
	// ones being received.
	maxStoring   = 128
	maxReceiving = 4
	// Idle lanes are kept alive by pings; one that is silent for so long is dead.
	laneIdle  = time.Minute
	laneWrite = 30 * time.Second
	// acceptPause is how long to wait when a connection cannot be accepted.
	acceptPause = time.Second
)

// Serve answers the other site's connections on l until ctx ends or l is closed.
func (h *Holder) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // as when there are too many open files: it may pass
			h.log.Error("a connection of the other site cannot be accepted", "err", err)
			pause(ctx, acceptPause)
			continue
		}
		wg.Go(func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			defer c.Close()
			err := newReceiver(h, c).run()
			if err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
				h.log.Debug("connection of the other site ended", "err", err)
			}
		})
	}
}

// receiver is one connection of the owner.
type receiver struct {
	h         *Holder
	conn      net.Conn
	r         *bufio.Reader
	out       *outbox
	storing   chan struct{} // as many as there are requests under way
	wg        sync.WaitGroup
	receiving map[uint32]*incoming // large messages, by request
	over      chan struct{}        // closed when another connection takes a message over
	once      sync.Once            // closes over
	done      chan struct{}        // closed when run has ended
}

// incoming is a large message that comes in.
type incoming struct {
	id   journal.ID
	body *journal.Body
}

func newReceiver(h *Holder, c net.Conn) *receiver {
	t := timedConn{c, laneIdle, laneWrite}
	return &receiver{h: h, conn: c, r: bufio.NewReaderSize(t, 64<<10), out: newOutbox(t), storing: make(chan struct{}, maxStoring),
		receiving: map[uint32]*incoming{}, over: make(chan struct{}), done: make(chan struct{})}
}

// run reads requests until the connection ends. Requests are answered in any order.
func (r *receiver) run() error {
	defer func() {
		r.wg.Wait()
		for _, in := range r.receiving {
			r.end(in)
		}
		r.out.close()
		close(r.done)
	}()
	var buf []byte
	for {
		f, b, err := readFrame(r.r, buf)
		if err != nil {
			return err
		}
		buf = b
		r.h.hear()
		if err := r.handle(f); err != nil {
			return err
		}
	}
}

// handle begins a request; an error ends the connection.
func (r *receiver) handle(f frame) error {
	switch f.kind {
	case kindBegin:
		return r.begin(f)
	case kindChunk:
		if in := r.receiving[f.request]; in != nil {
			_, _ = in.body.Write(f.payload) // kept in the body, said at commit
		}
		return nil
	case kindCancel:
		if in := r.receiving[f.request]; in != nil {
			r.end(in)
			delete(r.receiving, f.request)
		}
		return nil
	case kindCommit:
		in := r.receiving[f.request]
		delete(r.receiving, f.request)
		if in == nil {
			return fmt.Errorf("%w: commit of a message that was not begun", errFrame)
		}
		meta, err := journal.ParseMeta(f.payload)
		r.answer(f.request, func() ([]byte, error) {
			defer r.end(in)
			if err != nil {
				return nil, err
			}
			return nil, r.h.store(meta, in.body)
		})
		return nil
	case kindPut:
		payload := bytes.Clone(f.payload)
		r.answer(f.request, func() ([]byte, error) { return nil, r.h.put(payload) })
		return nil
	}
	payload := bytes.Clone(f.payload)
	do := r.h.answers()[f.kind]
	if do == nil {
		return fmt.Errorf("%w: kind %d", errFrame, f.kind)
	}
	r.answer(f.request, func() ([]byte, error) {
		return do(payload, func(part []byte) error { return r.out.send(kindData, f.request, part) })
	})
	return nil
}

func (r *receiver) begin(f frame) error {
	if len(r.receiving) >= maxReceiving || r.receiving[f.request] != nil {
		return fmt.Errorf("%w: more than %d large messages at a time", errFrame, maxReceiving)
	}
	ids, err := decodeIDs(f.payload)
	if err != nil || len(ids) != 1 {
		return fmt.Errorf("%w: begin with %d ids", errFrame, len(ids))
	}
	if err := r.takeOver(ids[0]); err != nil {
		return err
	}
	r.receiving[f.request] = &incoming{ids[0], r.h.held.NewBody(ids[0])}
	return nil
}

// takeOver makes this the connection over which the large message of id comes in. An
// older one that is still open is ended: it was lost, and the owner has begun again.
func (r *receiver) takeOver(id journal.ID) error {
	for {
		r.h.mu.Lock()
		other := r.h.coming[id]
		if other == nil {
			r.h.coming[id] = r
		}
		r.h.mu.Unlock()
		switch other {
		case nil:
			return nil
		case r:
			return fmt.Errorf("%w: %s twice at a time", errFrame, id)
		}
		other.once.Do(func() { close(other.over) })
		other.conn.Close()
		select {
		case <-other.done:
		case <-r.over: // and the other one may be waiting for this
			return fmt.Errorf("%s: %w", id, errClosed)
		}
	}
}

// end drops what is left of a large message.
func (r *receiver) end(in *incoming) {
	in.body.Discard()
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	delete(r.h.coming, in.id)
}

// answer runs a request beside the reading of the next ones, and answers it.
func (r *receiver) answer(request uint32, f func() ([]byte, error)) {
	r.storing <- struct{}{}
	r.wg.Go(func() {
		defer func() { <-r.storing }()
		answer, err := f()
		if err != nil {
			_ = r.out.send(kindFail, request, encodeError(err)) // a broken connection is seen by the reader
			return
		}
		_ = r.out.send(kindDone, request, answer)
	})
}
