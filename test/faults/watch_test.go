//go:build faults

package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"msgw/internal/admin"
	"msgw/test/labtest"
)

// watch asks both sites all the time how their copies are, and compares with the ledger
// what they hold.
type watch struct {
	a *appliance

	mu     sync.Mutex
	states [2]string // all that were seen, one after the other
}

func newWatch(a *appliance) *watch {
	w := &watch{a: a}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for site := range a.sites {
		wg.Go(func() {
			for ctx.Err() == nil {
				w.look(ctx, site)
				select {
				case <-time.After(300 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	a.t.Cleanup(func() {
		cancel()
		wg.Wait()
		for i, m := range a.sites {
			a.t.Logf("%s:%s", m.name, w.states[i])
		}
	})
	return w
}

// held returns which messages a site holds, own and copies.
func (m *machine) held(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ids := map[string]bool{}
	err := m.admin().Messages(ctx, admin.Query{}, func(m admin.Message) error {
		ids[m.ID] = m.Copy
		return nil
	})
	return ids, err
}

// look asks a site how it is. If it says SYNC, what it had acknowledged before must be at
// the other one. If both can be asked, what was acknowledged must be somewhere.
func (w *watch) look(ctx context.Context, site int) {
	self, other, led := w.a.sites[site], w.a.sites[1-site], w.a.led
	owed := led.owed(time.Now())
	s, err := self.status()
	if err != nil || ctx.Err() != nil {
		return // it is dead, or stands still
	}
	w.mu.Lock()
	if state := " " + s.Copies.State; !strings.HasSuffix(w.states[site], state) {
		w.states[site] += state
	}
	w.mu.Unlock()
	claims := s.Copies.State == "SYNC"
	if claims && (s.Copies.Single > 0 || s.Copies.Lost > 0 || s.Copies.Conflicts > 0 || s.Copies.Damaged > 0) {
		led.faultf("%s says SYNC and %+v", self.name, *s.Copies)
	}
	here, err := self.held(ctx)
	if err != nil {
		return
	}
	there, err := other.held(ctx)
	if err != nil {
		return
	}
	for id, host := range owed {
		copied, held := there[id]
		if led.isLeaving(id) {
			continue
		}
		switch _, kept := here[id]; {
		case !held && !kept:
			led.faultf("%s, acknowledged by %s, is held nowhere, and nobody has deleted it", id, host)
		case claims && host == self.name && !(held && copied):
			led.faultf("%s said SYNC at %s, and %s has no copy of %s, acknowledged before", self.name, s.Copies.Since.Format("15:04:05.000"), other.name, id)
		}
	}
	led.mu.Lock()
	defer led.mu.Unlock()
	led.audits++
	if claims {
		led.syncs++
	}
}

// finish ends a story: everything is repaired, everything is acknowledged, both sites are
// in sync, everything is fetched, and nothing is left.
func (a *appliance) finish() {
	a.t.Helper()
	a.repair(0, 1)
	began := time.Now()
	a.load.open()
	a.load.finish()
	for _, x := range a.archive {
		x.pause()
	}
	for site := range a.sites {
		a.becomes(site, 60*time.Second, "SYNC")
	}
	a.t.Logf("in SYNC %.1f s after the repair", time.Since(began).Seconds())
	for site := range a.sites {
		a.watch.look(a.t.Context(), site)
	}
	a.empty(0, 1)
	for site, m := range a.sites {
		a.becomes(site, 60*time.Second, "SYNC")
		labtest.Within(a.t, 30*time.Second, m.name+" has no trouble", func() error {
			s, err := m.status()
			if err == nil && (len(s.Trouble) > 0 || s.Copies.Single > 0 || !s.Accepting) {
				err = fmt.Errorf("%+v, accepting %v, trouble %q", *s.Copies, s.Accepting, s.Trouble)
			}
			return err
		})
		if out, err := m.msgw("journal", "verify", "--dir", m.dir); err != nil || !strings.HasPrefix(out, "0 messages") {
			a.t.Errorf("%s: %v\n%s", m.name, err, out)
		}
	}
}

// empty lets the archives fetch everything from those sites and waits until nothing is
// held there.
func (a *appliance) empty(sites ...int) {
	a.t.Helper()
	for _, i := range sites {
		a.archive[i].open()
	}
	labtest.Within(a.t, 90*time.Second, "everything is fetched and nothing is left", func() error {
		if lost := a.led.unfetched(); len(lost) > 0 {
			return fmt.Errorf("%d acknowledged deliveries are not fetched", len(lost))
		}
		var errs []error
		for _, i := range sites {
			held, err := a.sites[i].held(a.t.Context())
			if err == nil && len(held) > 0 {
				err = fmt.Errorf("%s holds %d messages", a.sites[i].name, len(held))
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// saw returns whether a site was seen in a state.
func (w *watch) saw(site int, state string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(w.states[site], state)
}
