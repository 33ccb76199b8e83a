// Package health turns probes into one verdict per host.
//
// It promises: no verdict removes a host; what is not known counts as healthy; a
// verdict changes only after several observations agree, except for what a node
// says of itself. It is each node's own view and needs no quorum.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Target is a node to watch.
type Target struct {
	Name string
	Self bool
	// Site is false for a witness, which is asked for its view and gets no verdict.
	Site bool
	Host string   // public host name
	SMTP []string // public host:port of its SMTP
	DNS  []string // public host:port of its DNS
	// Exchange is set for a mail exchanger that is no node: it has no peer port and tells
	// nothing of itself. It is probed with this alone; SMTP says what that looks at.
	Exchange func(ctx context.Context) error
}

// judged reports whether there is a verdict on t.
func (t Target) judged() bool { return t.Site || t.Exchange != nil }

// Report is what a node says of itself.
type Report struct {
	Accepting bool   `json:"accepting"`
	Reason    string `json:"reason,omitempty"` // why not
	Drained   bool   `json:"drained"`
	// DrainedUntil is when that ends by itself; zero: it does not.
	DrainedUntil time.Time `json:"drained_until,omitzero"`
	// Views are its own observations of the sites, by name.
	Views map[string]View `json:"views,omitempty"`
}

// View is what one node has observed of another.
type View struct {
	Peer   bool `json:"peer"`   // answers on the peer port
	Public bool `json:"public"` // answers on its public ports, those that ever did
	// Usable is false while SMTP has never answered: then it may be this observer's
	// way out that is closed, and Public says nothing.
	Usable bool `json:"usable"`
}

// Prober looks at nodes. Each call is given little time.
type Prober interface {
	Report(ctx context.Context, name string) (Report, error)
	SMTP(ctx context.Context, address, host string) error
	DNS(ctx context.Context, address string) error
}

// State of a host in the answers.
type State string

const (
	Up      State = "up"
	Drained State = "drained" // answered last, still accepts
	Down    State = "down"
)

// Verdict on a site.
type Verdict struct {
	Name   string    `json:"name"`
	State  State     `json:"state"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Observations behind it, for people.
	Observations []string `json:"observations"`
}

// Options of a Monitor. Zero fields mean the defaults.
type Options struct {
	Interval time.Duration // between probes; default 2 s
	Timeout  time.Duration // of one probe; default 2 s
	Down     int           // failures until an observation is bad; default 3
	OK       int           // successes in a row that forgive failures; default 10
	Up       int           // successes in a row until it is good again; default 6
	Hold     time.Duration // least time it stays bad, doubled while it flaps; default 10 s
	MaxHold  time.Duration // default 10 min
	Prober   Prober
	Targets  func() []Target
	Log      *slog.Logger
}

// Monitor watches all nodes from one of them.
type Monitor struct {
	opt Options

	mu       sync.Mutex
	seen     map[string]*seen
	own      *seen // of this node; nil before the first round
	verdicts []Verdict
	settled  bool
	at       time.Time
	changed  chan struct{}
}

// seen is what this node knows of a target.
type seen struct {
	peer, smtp, dns tally
	report          *Report // the last one; nil while the peer port is bad
	where           string  // public addresses that smtp and dns were counted for
	reported        bool    // the warning about unusable probes was given
}

// New returns a monitor that has not looked yet: it has no verdicts.
func New(opt Options) *Monitor {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&opt.Interval, 2*time.Second)
	def(&opt.Timeout, 2*time.Second)
	def(&opt.Hold, 10*time.Second)
	def(&opt.MaxHold, 10*time.Minute)
	for v, d := range map[*int]int{&opt.Down: 3, &opt.OK: 10, &opt.Up: 6} {
		if *v == 0 {
			*v = d
		}
	}
	return &Monitor{opt: opt, seen: map[string]*seen{}, changed: make(chan struct{})}
}

// Run probes until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	t := time.NewTicker(m.opt.Interval)
	defer t.Stop()
	for {
		m.round(ctx)
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// Verdicts returns the verdict on each site, whether none of them is about to
// change, and false if the view is too old to be used.
func (m *Monitor) Verdicts() (vs []Verdict, settled, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.verdicts, m.settled, time.Since(m.at) < 5*m.opt.Interval+m.opt.Timeout
}

// Views returns this node's observations, for the other nodes.
func (m *Monitor) Views() map[string]View {
	m.mu.Lock()
	defer m.mu.Unlock()
	views := map[string]View{}
	for name, s := range m.seen {
		views[name] = s.view()
	}
	return views
}

func (s *seen) view() View {
	return View{Peer: s.peer.good(), Public: s.smtp.good() && (!s.dns.ever || s.dns.good()), Usable: s.smtp.ever}
}

// OwnSMTP returns why this node's own SMTP port counts as dead, or nil. A node says
// so in its report, so that the others need not find out by themselves.
func (m *Monitor) OwnSMTP() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.own == nil || m.own.smtp.good() {
		return nil
	}
	if m.own.smtp.last == nil {
		return errors.New("own SMTP port answers again, but not for long enough")
	}
	return fmt.Errorf("own SMTP port does not answer: %w", m.own.smtp.last)
}

// Gone returns whether other nodes say that they do not reach a node either, neither on
// its peer port nor on its public ones, and none says that it does.
func (m *Monitor) Gone(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	said := false
	for other, s := range m.seen {
		if other == name || s == m.own || s.report == nil {
			continue
		}
		v, ok := s.report.Views[name]
		switch {
		case ok && (v.Peer || v.Public && v.Usable):
			return false
		case ok:
			said = true
		}
	}
	return said
}

// Changed returns a channel that is closed when a verdict changes.
func (m *Monitor) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// result of one round for one target.
type result struct {
	target         Target
	report         *Report
	peer, smtp, ns error
}

// round probes every target once, together, and judges.
func (m *Monitor) round(ctx context.Context) {
	targets := m.opt.Targets()
	results := make([]result, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() { results[i] = m.probe(ctx, t) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return // cut short: says nothing
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	known := map[string]bool{}
	for _, r := range results {
		known[r.target.Name] = true
		m.note(r, now)
	}
	for name := range m.seen {
		if !known[name] {
			delete(m.seen, name)
		}
	}
	m.judgeAll(targets, now)
	m.at = now
}

func (m *Monitor) probe(ctx context.Context, t Target) result {
	r := result{target: t}
	var wg sync.WaitGroup
	within := func(f func(ctx context.Context)) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, m.opt.Timeout)
			defer cancel()
			f(ctx)
		})
	}
	if t.Exchange != nil {
		within(func(ctx context.Context) { r.smtp = t.Exchange(ctx) })
		wg.Wait()
		return r
	}
	within(func(ctx context.Context) {
		if rep, err := m.opt.Prober.Report(ctx, t.Name); err != nil {
			r.peer = err
		} else {
			r.report = &rep
		}
	})
	if t.Site {
		within(func(ctx context.Context) {
			r.smtp = all(t.SMTP, func(a string) error { return m.opt.Prober.SMTP(ctx, a, t.Host) })
		})
		within(func(ctx context.Context) {
			r.ns = all(t.DNS, func(a string) error { return m.opt.Prober.DNS(ctx, a) })
		})
	}
	wg.Wait()
	return r
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

// note counts a result.
func (m *Monitor) note(r result, now time.Time) {
	s := m.seen[r.target.Name]
	if s == nil {
		s = &seen{}
		m.seen[r.target.Name] = s
	}
	if where := strings.Join(append(slices.Clone(r.target.SMTP), r.target.DNS...), " "); where != s.where {
		s.where, s.smtp, s.dns, s.reported = where, tally{}, tally{}, false
	}
	if r.target.Self {
		m.own = s
	}
	if r.target.Exchange != nil {
		s.noteExchange(r, now, m.opt)
		return
	}
	s.peer.add(r.peer, now, m.opt)
	if r.report != nil || !s.peer.good() {
		s.report = r.report // one lost answer does not unsay the last one
	}
	if !r.target.Site {
		return
	}
	s.smtp.add(r.smtp, now, m.opt)
	s.dns.add(r.ns, now, m.opt)
	if !r.target.Self && !s.smtp.ever && s.smtp.failures >= m.opt.Down && !s.reported {
		s.reported = true
		m.opt.Log.Warn("the public SMTP port of another site has never answered from here; many facilities block outgoing port 25, so it is left out of the verdict",
			"site", r.target.Name, "err", r.smtp)
	}
}

// judgeAll renews the verdicts.
func (m *Monitor) judgeAll(targets []Target, now time.Time) {
	old := m.verdicts
	var vs []Verdict
	settled := true
	for _, t := range targets {
		if !t.judged() {
			continue
		}
		v := judge(t, m.seen[t.Name], m.others(targets, t))
		v.Name, v.Since = t.Name, now
		if i := slices.IndexFunc(old, func(o Verdict) bool { return o.Name == t.Name && o.State == v.State }); i >= 0 {
			v.Since = old[i].Since
		} else if i := slices.IndexFunc(old, func(o Verdict) bool { return o.Name == t.Name }); i >= 0 || v.State != Up {
			m.opt.Log.Warn("health verdict", "site", t.Name, "state", v.State, "reason", v.Reason)
		}
		settled = settled && v.State == Up && m.seen[t.Name].settled()
		vs = append(vs, v)
	}
	same := slices.EqualFunc(old, vs, func(a, b Verdict) bool { return a.Name == b.Name && a.State == b.State }) && settled == m.settled
	m.verdicts, m.settled = vs, settled
	if !same {
		close(m.changed)
		m.changed = make(chan struct{})
	}
}

// settled reports whether no observation is on its way to change.
func (s *seen) settled() bool {
	return s.peer.failures == 0 && (!s.smtp.ever || s.smtp.failures == 0) && (!s.dns.ever || s.dns.failures == 0)
}

// others returns the views of t that third nodes, whose report is at hand, have.
func (m *Monitor) others(targets []Target, t Target) map[string]View {
	views := map[string]View{}
	for _, o := range targets {
		s := m.seen[o.Name]
		if o.Self || o.Name == t.Name || s == nil || s.report == nil {
			continue
		}
		if v, ok := s.report.Views[t.Name]; ok {
			views[o.Name] = v
		}
	}
	return views
}
