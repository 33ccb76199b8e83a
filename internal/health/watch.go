package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Run watches until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(m.opt.Interval)
		defer t.Stop()
		for {
			if m.pulse(ctx) {
				continue
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	})
	wg.Go(func() {
		t := time.NewTicker(m.opt.PublicInterval)
		defer t.Stop()
		for {
			m.public(ctx)
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		select {
		case name := <-m.looks:
			wg.Go(func() { m.look(ctx, name) })
		case <-ctx.Done():
			wg.Wait()
			return
		}
	}
}

// Look has a node looked at once more, now: a connection to it has broken, or it says that
// something has changed. It does not wait.
func (m *Monitor) Look(name string) {
	select {
	case m.looks <- name:
	default: // as many are under way
	}
}

// beat is the answer of a node that was asked whether it lives.
type beat struct {
	target  Target
	asked   time.Time
	report  *Report
	peer    error // of the peer port
	greeted error // of the public SMTP port; errUnasked: it was not asked
	slow    bool  // the time was up
}

var errUnasked = errors.New("not asked")

// refused reports whether the node, or what stands before it, said itself that nothing is
// there: not on the peer port, and not on the public one.
func (b beat) refused() bool {
	return errors.Is(b.peer, syscall.ECONNREFUSED) &&
		(errors.Is(b.greeted, syscall.ECONNREFUSED) || errors.Is(b.greeted, syscall.ECONNRESET) || errors.Is(b.greeted, io.EOF))
}

func (b beat) alive() bool { return b.peer == nil || b.greeted == nil }

// pulse asks every node whether it lives, all at once, and judges. It reports whether it is
// to be repeated at once: one did not answer that did before.
func (m *Monitor) pulse(ctx context.Context) (again bool) {
	targets := m.opt.Targets()
	nodes := slices.DeleteFunc(slices.Clone(targets), func(t Target) bool { return t.Exchange != nil })
	beats := make([]beat, len(nodes))
	var wg sync.WaitGroup
	for i, t := range nodes {
		wg.Go(func() { beats[i] = m.ask(ctx, t) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return false // cut short: says nothing
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, b := range beats {
		s := m.note(b, now)
		again = again || b.slow && s.gone.good() && s.peer.good()
	}
	for name := range m.seen {
		if !slices.ContainsFunc(targets, func(t Target) bool { return t.Name == name }) {
			delete(m.seen, name)
		}
	}
	m.judgeAll(targets, now)
	m.at = now
	return again
}

// greetingTimeout leaves TCP one repetition of a lost SYN, and the greeting 0.4 s.
const greetingTimeout = 1400 * time.Millisecond

// ask asks one node whether it lives: on its peer port and, if that does not answer, on its
// public SMTP port.
func (m *Monitor) ask(ctx context.Context, t Target) beat {
	b := beat{target: t, asked: time.Now(), greeted: errUnasked}
	timeout, suspect := m.opt.Timeout, false
	m.mu.Lock()
	if s := m.seen[t.Name]; s != nil {
		suspect = s.peer.last != nil
		if s.peer.bad && s.gone.good() {
			timeout = max(timeout, greetingTimeout) // the path is cut for longer, and SMTP tells alone
		}
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	greet := func() {
		b.greeted = all(t.SMTP, func(a string) error { return m.opt.Prober.Greeting(ctx, a) })
	}
	public := t.Site && !t.Self
	var wg sync.WaitGroup
	if suspect && public {
		wg.Go(greet)
	}
	r, err := m.opt.Prober.Report(ctx, t.Name)
	wg.Wait()
	if err == nil {
		b.report = &r
		return b
	}
	b.peer = err
	if public && !suspect && ctx.Err() == nil {
		greet()
	}
	b.slow = time.Since(b.asked) >= timeout
	return b
}

// note counts a beat, unless a later one was counted before: a pulse waits for the slowest.
func (m *Monitor) note(b beat, now time.Time) *seen {
	s := m.known(b.target)
	if b.asked.Before(s.asked) {
		return s
	}
	s.asked = b.asked
	s.peer.add(b.peer, now, m.opt)
	gone := m.opt
	gone.OK = 1 // three in a row
	if b.alive() {
		s.gone.add(nil, now, gone)
	} else {
		s.gone.add(b.peer, now, gone)
		if s.peer.ever && b.refused() {
			s.gone.fail(now, gone)
		}
	}
	if b.report != nil || !s.peer.good() || !s.gone.good() {
		s.report = b.report // one lost answer does not unsay the last one
	}
	return s
}

// known returns what is known of a target, made anew where its public addresses changed.
func (m *Monitor) known(t Target) *seen {
	s := m.seen[t.Name]
	if s == nil {
		s = &seen{}
		m.seen[t.Name] = s
	}
	if where := strings.Join(append(slices.Clone(t.SMTP), t.DNS...), " "); where != s.where {
		s.where, s.smtp, s.dns, s.reported = where, tally{}, tally{}, false
	}
	if t.Self {
		m.own = s
	}
	return s
}

// The tries of a look, and the time between them: a process that is killed closes its
// connections and its ports one after the other.
const (
	lookTries = 4
	lookPause = 60 * time.Millisecond
)

// look asks a node at once. Only an answer, or a refusal on both ports, counts: what else
// it may be, the next pulses find out.
func (m *Monitor) look(ctx context.Context, name string) {
	targets := m.opt.Targets()
	i := slices.IndexFunc(targets, func(t Target) bool { return t.Name == name })
	m.mu.Lock()
	busy := i < 0 || targets[i].Exchange != nil || m.looking[name] || m.seen[name] == nil
	if !busy {
		m.looking[name] = true
	}
	m.mu.Unlock()
	if busy {
		return
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.looking, name)
	}()
	for try := range lookTries {
		if try > 0 {
			select {
			case <-time.After(lookPause):
			case <-ctx.Done():
				return
			}
		}
		b := m.ask(ctx, targets[i])
		if ctx.Err() != nil {
			return
		}
		if b.report == nil && !b.refused() {
			continue
		}
		m.mu.Lock()
		if m.seen[name] != nil {
			m.note(b, time.Now())
			m.judgeAll(targets, time.Now())
		}
		m.mu.Unlock()
		return
	}
}

// public looks at the public ports of every site, and at the anchors, as strangers do.
func (m *Monitor) public(ctx context.Context) {
	targets := m.opt.Targets()
	type result struct{ smtp, dns error }
	results := make([]result, len(targets))
	var anchors error
	var wg sync.WaitGroup
	probe := func(addresses []string, f func(ctx context.Context, address string) error, err *error) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, m.opt.PublicTimeout)
			defer cancel()
			*err = all(addresses, func(a string) error { return f(ctx, a) })
		})
	}
	for i, t := range targets {
		if t.Exchange != nil {
			probe([]string{t.Name}, func(ctx context.Context, _ string) error { return t.Exchange(ctx) }, &results[i].smtp)
		}
		if t.Site {
			probe(t.SMTP, func(ctx context.Context, a string) error { return m.opt.Prober.SMTP(ctx, a, t.Host) }, &results[i].smtp)
			probe(t.DNS, m.opt.Prober.DNS, &results[i].dns)
		}
	}
	if len(m.opt.Anchors) > 0 {
		probe(m.opt.Anchors, m.opt.Prober.Anchor, &anchors)
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.anchors.add(anchors, now, m.opt)
	for i, t := range targets {
		if t.Exchange != nil {
			m.known(t).noteExchange(t, results[i].smtp, now, m.opt)
		}
		if !t.Site {
			continue
		}
		s := m.known(t)
		s.smtp.add(results[i].smtp, now, m.opt)
		s.dns.add(results[i].dns, now, m.opt)
		if !t.Self && !s.smtp.ever && s.smtp.failures >= m.opt.Down && !s.reported {
			s.reported = true
			m.opt.Log.Warn("the public SMTP port of another site has never answered from here; many facilities block outgoing port 25, so it is left out of the verdict",
				"site", t.Name, "err", results[i].smtp)
		}
	}
	m.judgeAll(targets, now)
}

// all probes the addresses of a target together; one that answers is enough.
func all(addresses []string, probe func(string) error) error {
	if len(addresses) == 0 {
		return fmt.Errorf("no public address is configured")
	}
	errs := make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() { errs[i] = probe(a) })
	}
	wg.Wait()
	if i := slices.Index(errs, nil); i >= 0 {
		return nil
	}
	return errs[0]
}
