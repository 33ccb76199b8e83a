package lineproto

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
)

// ErrPlaceGiven says that a connection ends because its place was given to another one.
// It wraps os.ErrDeadlineExceeded, as every other time limit here does.
var ErrPlaceGiven = fmt.Errorf("place given to another connection: %w", os.ErrDeadlineExceeded)

// stalled is how long a peer must be silent within a transfer before that is no transfer
// any more.
const stalled = 10 * time.Second

// seat is a connection as the counter has it.
type seat struct {
	counter          *counter
	address, network netip.Prefix
	given            bool // to another connection; it is not in the total any more
}

// seatKey is the key of a connection's seat in the context that Handle gets.
type seatKey struct{}

// Stranger says that c's peer has proven nothing yet. Once connections are at their
// total, the stranger that has been silent for longest is closed for the sake of a new
// connection: else whoever connects often enough, and says nothing, would keep all others
// out. ctx is the one that Handle got.
func (c *Conn) Stranger(ctx context.Context) {
	if s, ok := ctx.Value(seatKey{}).(*seat); ok {
		s.counter.mu.Lock()
		defer s.counter.mu.Unlock()
		s.counter.strangers[s] = c
		c.seat = s
	}
}

// Known says that c's peer is no stranger any more.
func (c *Conn) Known() {
	if s := c.seat; s != nil {
		s.counter.mu.Lock()
		defer s.counter.mu.Unlock()
		delete(s.counter.strangers, s)
	}
}

// makeRoom closes the stranger that has been silent for longest, if there is one, and not
// as many as there are places have yet to end. n.mu is held.
func (n *counter) makeRoom() bool {
	for n.leaving < n.limits.Total {
		now := time.Now()
		var s *seat
		var since int64
		for other, c := range n.strangers {
			if at, ok := c.silentSince(now); ok && (s == nil || at < since) {
				s, since = other, at
			}
		}
		if s == nil {
			return false
		}
		if n.strangers[s].give(since) { // else it has spoken just now
			delete(n.strangers, s)
			s.given = true
			n.total--
			n.leaving++
			return true
		}
	}
	return false
}

// place is what a Conn knows of its place among the connections.
type place struct {
	seat         *seat // nil: it keeps its place
	transferring atomic.Bool
	waits        atomic.Int64  // unix nanoseconds since when the peer is waited for; 0: it is not; gone: never again
	given        chan struct{} // closed when the place was given to another connection
}

const gone = -1

// beginWait and endWait return false if the place was given to another connection.
func (p *place) beginWait(now time.Time) bool { return p.waits.CompareAndSwap(0, now.UnixNano()) }

func (p *place) endWait() bool {
	since := p.waits.Load()
	return since != gone && p.waits.CompareAndSwap(since, 0)
}

// silentSince returns since when the peer is waited for, in unix nanoseconds, and whether
// that is reason enough to give the place away.
func (p *place) silentSince(now time.Time) (since int64, enough bool) {
	since = p.waits.Load()
	return since, since > 0 && (!p.transferring.Load() || now.UnixNano()-since >= int64(stalled))
}

// give gives the place away if the peer has been waited for since then, all the time.
// Whoever runs the connection gets ErrPlaceGiven from Read or Pause; goodbye can be said.
func (c *Conn) give(since int64) bool {
	if !c.waits.CompareAndSwap(since, gone) {
		return false
	}
	close(c.given)
	c.CloseBy(time.Now())
	return true
}

// Pause waits for d, or until ctx ends or the connection's place was given to another.
func (c *Conn) Pause(ctx context.Context, d time.Duration) error {
	if !c.beginWait(time.Now()) {
		return ErrPlaceGiven
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-c.given:
	}
	if !c.endWait() {
		return ErrPlaceGiven
	}
	return ctx.Err()
}
