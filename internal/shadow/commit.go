package shadow

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"time"

	"msgw/internal/journal"
)

// Body collects the sealed octets of one message for both sites. A large one is on its
// way to the other site while it is still coming in.
type Body struct {
	s    *Shipper
	own  *journal.Body
	id   journal.ID
	sum  hash.Hash
	size int64

	parts  [][]byte // all octets, while they are few; nil once they are not
	stream *stream  // nil if it is not being streamed
	failed bool     // nothing is sent from here: the message is sent from this site's journal
}

// inlineMax is the most octets that are sent in one frame.
const inlineMax = 256 << 10

// partSize is the least that is kept for the next octets of a message.
const partSize = 2 << 10

// NewBody starts the sealed message of id. Either Commit or Discard ends it.
func (s *Shipper) NewBody(id journal.ID) *Body {
	b := &Body{s: s, own: s.own.NewBody(id), id: id}
	s.mu.Lock()
	defer s.mu.Unlock()
	// While there is no other site, nothing is kept for it. To one that comes meanwhile
	// the message is sent as those of before are.
	if b.failed = s.alone; !b.failed {
		b.sum = sha256.New()
	}
	return b
}

// Write adds sealed octets. It fails only for what fails here.
func (b *Body) Write(p []byte) (int, error) {
	n, err := b.own.Write(p)
	if err != nil {
		return n, err
	}
	b.size += int64(len(p))
	if b.failed {
		return len(p), nil
	}
	b.sum.Write(p)
	switch {
	case b.size <= inlineMax:
		b.keep(p)
	case b.stream == nil:
		if b.stream, err = b.s.current().stream(context.Background(), b.id, false); err != nil {
			b.failed = true
		} else {
			for _, part := range b.parts {
				b.send(part)
			}
			b.send(p)
		}
		b.parts = nil
	default:
		b.send(p)
	}
	return len(p), nil
}

// keep adds octets to the parts: what is there is not moved.
func (b *Body) keep(p []byte) {
	if n := len(b.parts); n > 0 {
		last := &b.parts[n-1]
		k := min(len(p), cap(*last)-len(*last))
		*last, p = append(*last, p[:k]...), p[k:]
	}
	if len(p) > 0 {
		b.parts = append(b.parts, append(make([]byte, 0, max(len(p), partSize)), p...))
	}
}

func (b *Body) send(p []byte) {
	if b.stream == nil {
		return
	}
	if _, err := b.stream.Write(p); err != nil {
		b.stream.cancel()
		b.stream, b.failed = nil, true
	}
}

// Discard drops a body that was not committed. It is safe to call always.
func (b *Body) Discard() {
	b.own.Discard()
	if b.stream != nil {
		b.stream.cancel()
		b.stream = nil
	}
	b.parts = nil
}

// Message pairs the facts of a message with its sealed octets.
type Message struct {
	Meta journal.Meta
	Body *Body
}

// ticket is a message whose copy somebody waits for.
type ticket struct {
	held chan struct{} // closed when the other site holds it
}

// Commit makes messages durable at both sites, or at this one if strict is not set and
// the state is DEGRADED or ALONE, and lists them; all of them or none. It returns how
// many copies each of them has at least: 1 or 2. ErrSingle means that the other site did
// not confirm and that the messages were dropped. Other errors are those of
// journal.Commit, or say that messages could be neither confirmed nor dropped: they may
// be listed later. When ctx ends it does not wait any more; what was confirmed until then
// is taken all the same.
func (s *Shipper) Commit(ctx context.Context, strict bool, ms ...Message) (copies int, err error) {
	if err := s.Refuse(strict); err != nil {
		for _, m := range ms {
			m.Body.Discard()
		}
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.times().Wait)
	defer cancel()
	own := make([]journal.Message, len(ms))
	tickets, err := s.take(ms)
	if err != nil {
		for _, m := range ms {
			m.Body.Discard()
		}
		return 0, err
	}
	for i, m := range ms {
		m.Meta.Sealed = m.Body.size
		parts, st := m.Body.parts, m.Body.stream
		m.Body.parts, m.Body.stream = nil, nil
		if !m.Body.failed {
			m.Body.sum.Sum(m.Meta.SHA256[:0])
			s.begin(func() { s.offer(ctx, m.Meta, parts, st) }) // ends with ctx, or with the link
		}
		own[i] = journal.Message{Meta: m.Meta, Body: m.Body.own}
	}
	p, err := s.own.Prepare(own...)
	if err != nil {
		for _, m := range ms {
			s.dropTicket(m.Meta.ID)
		}
		return 0, err
	}
	s.prepared(ms)
	if err := s.await(ctx, strict, tickets); err != nil {
		for _, m := range ms {
			s.dropTicket(m.Meta.ID)
		}
		if aerr := p.Abort(); aerr != nil {
			// They stay durable and unlisted here until the next start lists them.
			return 0, fmt.Errorf("not confirmed by the other site (%v), and not dropped here: %w", err, aerr)
		}
		s.Deleted() // the other site may hold them
		return 0, err
	}
	p.List()
	return s.settle(ms), nil
}

// prepared says that messages can be read from this site's journal: what was not sent
// before, or in vain, can be now.
func (s *Shipper) prepared(ms []Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range ms {
		if _, missing := s.missing[m.Meta.ID]; missing || m.Body.failed {
			s.resend(m.Meta.ID)
		}
	}
}

// settle takes messages that were listed off the tickets; those without a copy are
// remembered as such. It returns how many copies each has at least.
func (s *Shipper) settle(ms []Message) (copies int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	copies = 2
	for _, m := range ms {
		t := s.tickets[m.Meta.ID]
		delete(s.tickets, m.Meta.ID)
		select {
		case <-t.held:
		default:
			copies = 1
			if s.alone { // the first comparison finds it
				delete(s.missing, m.Meta.ID)
			} else {
				s.miss(m.Meta.ID)
			}
		}
	}
	s.judge(time.Now())
	return copies
}

// take makes the tickets of messages. An id has one at a time, and none if a message
// with it is here: what is known of that one must not be mixed up with the new.
func (s *Shipper) take(ms []Message) ([]*ticket, error) {
	tickets := make([]*ticket, 0, len(ms))
	s.mu.Lock()
	for _, m := range ms {
		if s.tickets[m.Meta.ID] != nil {
			break
		}
		t := &ticket{held: make(chan struct{})}
		s.tickets[m.Meta.ID] = t
		tickets = append(tickets, t)
	}
	s.mu.Unlock()
	for i, m := range ms {
		_, held := s.own.Has(m.Meta.ID)
		if held || i == len(tickets) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, m := range ms[:len(tickets)] {
				delete(s.tickets, m.Meta.ID)
			}
			return nil, fmt.Errorf("%s: %w", m.Meta.ID, journal.ErrHeld)
		}
	}
	return tickets, nil
}

// confirm says that the other site holds the message; Shipper.mu is held. It may be
// said twice, when the message was sent twice.
func (t *ticket) confirm() {
	select {
	case <-t.held:
	default:
		close(t.held)
	}
}

// dropTicket forgets a message that is not taken.
func (s *Shipper) dropTicket(id journal.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tickets, id)
	delete(s.missing, id)
}

// await waits for the tickets, or until one copy will do or has to be refused.
func (s *Shipper) await(ctx context.Context, strict bool, tickets []*ticket) error {
	for _, t := range tickets {
		for held := false; !held; {
			s.mu.Lock()
			state, changed := s.state.State, s.changed
			s.mu.Unlock()
			select {
			case <-t.held: // whatever else is true
				held = true
				continue
			default:
			}
			if state == Degraded || state == Alone {
				if strict {
					return fmt.Errorf("%w: state is %s", ErrSingle, state)
				}
				return nil
			}
			select {
			case <-t.held:
				held = true
			case <-changed:
			case <-ctx.Done():
				return fmt.Errorf("%w within %v: state is %s", ErrSingle, s.times().Wait, state)
			}
		}
	}
	return nil
}

// begin runs f beside the caller, unless Run has ended: it waits for all of them.
func (s *Shipper) begin(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.offers.Go(f)
	}
}

// offer sends a message that is being stored here, from memory or as the end of its
// stream. What fails is sent again from this site's journal.
func (s *Shipper) offer(ctx context.Context, meta journal.Meta, parts [][]byte, st *stream) {
	l := s.current()
	head, err := journal.AppendMeta(nil, meta)
	switch {
	case err != nil:
		if st != nil {
			st.cancel()
		}
	case st != nil:
		err = st.finish(ctx, head)
	default:
		err = put(ctx, l, head, parts...)
	}
	s.answered(meta.ID, err)
}

// answered notes what became of a message that was sent.
func (s *Shipper) answered(id journal.ID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tickets[id]
	switch {
	case err == nil:
		if t != nil {
			t.confirm()
		}
		delete(s.missing, id)
		s.trouble = nil
	case errors.Is(err, ErrConflict):
		s.conflicts[id] = struct{}{}
		s.log.Error("the other site holds another message under this id", "id", id.String())
	case errors.Is(err, errRefused) && !errors.Is(err, journal.ErrDeleted): // that is about this message only
		s.inTrouble(err)
		s.resend(id)
	default:
		s.resend(id)
	}
	s.judge(time.Now())
}

// resend puts a message that somebody waits for among those to be sent; s.mu is held.
func (s *Shipper) resend(id journal.ID) {
	if s.tickets[id] != nil {
		s.miss(id)
		wake(s.work)
	}
}

// miss notes that the other site is not known to hold a message: the state is not SYNC
// from now on. s.mu is held.
func (s *Shipper) miss(id journal.ID) {
	s.missing[id] = struct{}{}
	s.judge(time.Now())
}

// inTrouble notes that the other site does not store; s.mu is held.
func (s *Shipper) inTrouble(err error) {
	now := time.Now()
	if s.trouble == nil {
		s.log.Warn("the other site does not store", "err", err)
		s.troubled = now
	}
	s.trouble, s.refusal = err, now
}

// stores notes that the other site says that it can store. That ends the trouble if it
// has refused nothing lately: there may be nothing to send that would show it.
func (s *Shipper) stores() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble != nil && time.Since(s.refusal) >= 2*s.times().Ping {
		s.trouble = nil
		s.judge(time.Now())
	}
}
