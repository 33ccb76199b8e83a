package shadow

import (
	"context"
	"errors"
	"sync"
	"time"

	"msgw/internal/journal"
)

// sending is how many messages of before are on their way at a time, and how many more
// that somebody waits for.
const sending = 8

// resender sends from this site's journal what the other site does not hold, over one
// link. What somebody waits for goes first and is not slowed down; nothing waits for the
// end of what is under way.
type resender struct {
	s              *Shipper
	l              *link
	wg             sync.WaitGroup
	urgent, before chan struct{} // as many as there are under way

	mu    sync.Mutex
	tried map[journal.ID]time.Time // not to be tried before; zero: under way
	rest  time.Time                // nothing is to be sent before: the other site does not store
	paced time.Time                // no message of before is to be sent before
}

// sendMissing sends what the other site does not hold until ctx ends.
func (s *Shipper) sendMissing(ctx context.Context, l *link) {
	r := &resender{s: s, l: l, urgent: make(chan struct{}, sending), before: make(chan struct{}, sending), tried: map[journal.ID]time.Time{}}
	defer r.wg.Wait()
	for ctx.Err() == nil {
		if r.round(ctx, time.Now().Add(s.times().Ping)) {
			continue
		}
		select {
		case <-s.work:
		case <-time.After(s.times().Ping):
		case <-ctx.Done():
		}
	}
}

// round sends what is due, until end or until somebody waits for something else. It
// returns whether more may be due.
func (r *resender) round(ctx context.Context, end time.Time) bool {
	urgent, before := r.due(time.Now())
	for i, id := range append(urgent, before...) {
		meta, ok := r.s.own.Has(id)
		if !ok {
			r.s.forgetMissing(id)
			continue
		}
		slots := r.urgent
		if i >= len(urgent) {
			slots = r.before
			if !r.pace(ctx, end, meta.Sealed) {
				return true
			}
		}
		t := time.NewTimer(time.Until(end))
		select {
		case slots <- struct{}{}:
			t.Stop()
		case <-r.s.work:
			t.Stop()
			return true
		case <-t.C:
			return true
		case <-ctx.Done():
			t.Stop()
			return false
		}
		if !r.start(ctx, id, slots) {
			<-slots
			return false
		}
	}
	return false
}

// due returns what is missing and not under way: what somebody waits for, and the rest.
func (r *resender) due(now time.Time) (urgent, before []journal.ID) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, at := range r.tried {
		if _, ok := r.s.missing[id]; !ok && !at.IsZero() {
			delete(r.tried, id)
		}
	}
	if now.Before(r.rest) {
		return nil, nil
	}
	for id := range r.s.missing {
		if at, ok := r.tried[id]; ok && (at.IsZero() || now.Before(at)) {
			continue
		}
		if r.s.tickets[id] != nil {
			urgent = append(urgent, id)
		} else {
			before = append(before, id)
		}
	}
	return urgent, before
}

// pace waits until a message of before may be sent without more than the bandwidth.
// false means that the round is over before.
func (r *resender) pace(ctx context.Context, end time.Time, octets int64) bool {
	if r.s.settings().Bandwidth <= 0 {
		return true
	}
	if wait := time.Until(r.paced); wait > 0 {
		t := time.NewTimer(min(wait, time.Until(end)))
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.s.work:
			return false
		case <-ctx.Done():
			return false
		}
		if time.Now().Before(r.paced) {
			return false
		}
	}
	r.paced = time.Now().Add(time.Duration(float64(octets) / float64(r.s.settings().Bandwidth) * float64(time.Second)))
	return true
}

// start sends one message beside the others; false means that the other site does not
// store.
func (r *resender) start(ctx context.Context, id journal.ID, slots chan struct{}) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.rest) {
		return false
	}
	r.tried[id] = time.Time{}
	r.wg.Go(func() {
		defer func() { <-slots }()
		err := r.s.sendStored(ctx, r.l, id)
		r.note(id, err)
		switch {
		case err == nil, errors.Is(err, errRefused):
			r.s.answered(id, err)
		case errors.Is(err, journal.ErrNotFound):
			r.s.forgetMissing(id) // deleted meanwhile
		case errors.Is(err, ErrLink), errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil:
		default:
			r.s.log.Error("a message that the other site lacks cannot be read", "id", id.String(), "err", err)
		}
	})
	return true
}

// note says when a message may be tried again: soon if that may help. One that cannot be
// read, or that the other site does not want, does not hold up the others.
func (r *resender) note(id journal.ID, err error) {
	now, times := time.Now(), r.s.times()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		delete(r.tried, id)
	case errors.Is(err, ErrConflict), errors.Is(err, journal.ErrDeleted):
		r.tried[id] = now.Add(times.Compare)
	case errors.Is(err, errRefused):
		r.rest = now.Add(times.Ping)
		r.tried[id] = r.rest
	case errors.Is(err, ErrLink), errors.Is(err, context.DeadlineExceeded):
		r.tried[id] = now.Add(times.Ping)
	default:
		r.tried[id] = now.Add(times.Compare)
	}
}

// forgetMissing takes a message that is not here (any more) off those to be sent,
// unless it is just being stored.
func (s *Shipper) forgetMissing(id journal.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tickets[id] == nil {
		delete(s.missing, id)
	}
}
