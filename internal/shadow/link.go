package shadow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"msgw/internal/journal"
)

// link is the connections to the other site: one lane for small messages and for
// questions, and one for each large message that is under way.
type link struct {
	main *lane
	dial func(context.Context) (net.Conn, error)
	hear func()

	mu    sync.Mutex
	large int                // messages that are sent while they come in
	lanes map[*lane]struct{} // all but main
	idle  []*lane            // those that nobody uses
	gone  bool
}

const (
	// maxLarge bounds the large messages that are sent while they come in; more are sent
	// after they were stored here.
	maxLarge = 16
	maxIdle  = 4
	dialTime = 10 * time.Second
)

// largeLane returns a lane for one large message. One that still comes in gets none if
// there are enough of them.
func (l *link) largeLane(ctx context.Context, stored bool) (*lane, error) {
	l.mu.Lock()
	if l.gone {
		l.mu.Unlock()
		return nil, ErrLink
	}
	if !stored {
		if l.large >= maxLarge {
			l.mu.Unlock()
			return nil, fmt.Errorf("%d large messages are under way", maxLarge)
		}
		l.large++
	}
	for len(l.idle) > 0 {
		n := len(l.idle) - 1
		ln := l.idle[n]
		l.idle = l.idle[:n]
		select {
		case <-ln.done: // it ended meanwhile
			delete(l.lanes, ln)
			continue
		default:
		}
		l.mu.Unlock()
		return ln, nil
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := l.dial(ctx)
	if err != nil {
		l.release(stored)
		return nil, fmt.Errorf("%w: %w", ErrLink, err)
	}
	ln := newLane(c, l.hear)
	l.mu.Lock()
	gone := l.gone
	if !gone {
		l.lanes[ln] = struct{}{}
	}
	l.mu.Unlock()
	if gone {
		ln.close()
		l.release(stored)
		return nil, ErrLink
	}
	return ln, nil
}

func (l *link) release(stored bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !stored {
		l.large--
	}
}

// giveBack ends the use of a lane for a large message; one whose message was cut off
// is closed.
func (l *link) giveBack(ln *lane, stored, sound bool) {
	l.release(stored)
	l.mu.Lock()
	if sound && !l.gone && len(l.idle) < maxIdle {
		l.idle = append(l.idle, ln)
		ln = nil
	}
	delete(l.lanes, ln)
	l.mu.Unlock()
	if ln != nil {
		ln.close()
	}
}

// close ends all lanes, and with them what is under way.
func (l *link) close() {
	l.mu.Lock()
	l.gone = true
	lanes := append(slices.Collect(maps.Keys(l.lanes)), l.main)
	l.mu.Unlock()
	for _, ln := range lanes {
		ln.close()
	}
}

// Run keeps the link, sends what is missing and what was deleted, and judges the
// state, until ctx ends.
func (s *Shipper) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		s.mu.Lock()
		s.ended = true
		s.mu.Unlock()
		s.offers.Wait()
	}()
	wg.Go(func() { s.watch(ctx) })
	for ctx.Err() == nil {
		if err := s.connect(ctx); err != nil {
			s.unreached(err)
			if errors.Is(err, ErrAlone) {
				s.forgetGraves()
			}
		} else {
			s.useLink(ctx)
		}
		pause(ctx, s.times().Refused/8)
	}
}

// watch judges the state as time passes.
func (s *Shipper) watch(ctx context.Context) {
	for {
		s.mu.Lock()
		s.judge(time.Now())
		s.mu.Unlock()
		if !pause(ctx, s.times().Refused/8) {
			return
		}
	}
}

func (s *Shipper) connect(ctx context.Context) error {
	dctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := s.opt.Dial(dctx)
	if err != nil {
		return err
	}
	l := &link{main: newLane(c, s.heardNow), dial: s.opt.Dial, hear: s.heardNow, lanes: map[*lane]struct{}{}}
	_, err = l.main.ping(ctx, dialTime)
	if err != nil && !errors.Is(err, errRefused) {
		l.close()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link, s.alone, s.refused, s.compared = l, false, false, false
	s.broken, s.trouble, s.heard = time.Time{}, nil, time.Now()
	if err != nil {
		s.inTrouble(err)
	}
	s.judge(s.heard)
	return nil
}

// unreached notes why there is no link.
func (s *Shipper) unreached(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = errors.Is(err, ErrAlone)
	s.refused = errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, ErrLink)
	if s.broken.IsZero() {
		s.broken = time.Now()
	}
	s.judge(time.Now())
}

// forgetGraves drops the deletions that there is nobody to be told of. A site that comes
// later begins without copies.
func (s *Shipper) forgetGraves() {
	graves := s.own.Graves()
	ids := make([]journal.ID, len(graves))
	for i, g := range graves {
		ids[i] = g.ID
	}
	s.own.Forget(ids...)
}

func (s *Shipper) heardNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
}

// current returns the link, nil while there is none.
func (s *Shipper) current() *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

// useLink works with the link until it breaks or ctx ends.
func (s *Shipper) useLink(ctx context.Context) {
	l := s.current()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { // signs of life, also to notice that there are none
		defer cancel()
		known := uint32(0) // damaged copies
		for pause(ctx, s.times().Ping) {
			answer, err := l.main.ping(ctx, s.times().Silent)
			switch {
			case err == nil:
				s.stores()
				if answer.damaged != known {
					known = answer.damaged
					s.Repair()
				}
				if answer.adopted {
					s.adopted.Store(true)
					wake(s.told)
				}
			case ctx.Err() != nil:
				return
			case !errors.Is(err, errRefused): // else it lives, and does not store
				s.log.Warn("link to the other site lost", "err", err)
				return
			}
		}
	})
	wg.Go(func() { s.sendMissing(ctx, l) })
	wg.Go(func() {
		defer cancel()
		if err := s.maintain(ctx, l); err != nil && ctx.Err() == nil {
			s.log.Warn("work with the other site ended", "err", err)
		}
	})
	select {
	case <-l.main.done:
	case <-ctx.Done():
	}
	cancel()
	s.mu.Lock()
	s.link, s.compared, s.broken = nil, false, time.Now()
	s.judge(s.broken)
	s.mu.Unlock()
	l.close()
	wg.Wait()
}

// pause waits; false means that ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
