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

// reached reports whether the node was seen to live.
func (v View) reached() bool { return v.Peer || v.Public && v.Usable }

// Prober looks at nodes. Each call is given little time.
type Prober interface {
	Report(ctx context.Context, name string) (Report, error)
	// SMTP looks at a public port as a sender does, Greeting waits for its first line only.
	SMTP(ctx context.Context, address, host string) error
	Greeting(ctx context.Context, address string) error
	DNS(ctx context.Context, address string) error
	// Anchor connects to a place outside of the appliance.
	Anchor(ctx context.Context, address string) error
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
	Row    Row       `json:"row"` // of the decision table
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	// Observations behind it, for people.
	Observations []string `json:"observations"`
}

// Options of a Monitor. Zero fields mean the defaults.
type Options struct {
	Timing
	Down    int           // failures until an observation is bad; default 3
	OK      int           // successes in a row that forgive failures; default 10
	Up      int           // successes in a row until it is good again; default 6
	Hold    time.Duration // least time it stays bad, doubled while it flaps; default 10 s
	MaxHold time.Duration // default 10 min
	Anchors []string      // host:port of places outside; none: this node never counts as cut off
	Prober  Prober
	Targets func() []Target
	// OwnChanged is called when what this node says of itself or has seen of others
	// has changed, so that the others can be told. It must not wait.
	OwnChanged func()
	Log        *slog.Logger
}

// Timing says how often a Monitor looks. Zero fields mean the defaults.
type Timing struct {
	// Of the question on the peer port: between two, and until one counts as failed; one
	// that had no answer is repeated at once. Defaults 2 s and 1.4 s: a node that falls
	// silent right after an answer has failed three after 2 + 3 x 1.4 s.
	Interval, Timeout time.Duration
	// Of the dialogues with public ports. Defaults 2 s and 3 s, which leaves TCP one
	// repetition of a lost SYN (RFC 6298 section 2) and the dialogue after it 2 s, so that a
	// path of 200 ms that loses packets does not look like a dead port.
	PublicInterval, PublicTimeout time.Duration
}

// Fast notices a silent node within 0.3 + 3 x 0.35 s. It asks for a path of less than
// 150 ms between the sites.
func Fast() Timing { return Timing{Interval: 300 * time.Millisecond, Timeout: 350 * time.Millisecond} }

// Monitor watches all nodes from one of them.
type Monitor struct {
	opt Options

	mu       sync.Mutex
	seen     map[string]*seen
	own      *seen // of this node; nil before the first round
	anchors  tally
	verdicts []Verdict
	settled  bool
	at       time.Time
	changed  chan struct{}
	told     string // what OwnChanged was last called for
	looking  map[string]bool

	looks chan string
}

// seen is what this node knows of a target.
type seen struct {
	peer, smtp, dns tally
	// gone is bad when neither the peer port nor the greeting of SMTP answered.
	gone     tally
	report   *Report   // the last one; nil while the peer port is bad
	asked    time.Time // when the last beat that counts began
	where    string    // public addresses that smtp and dns were counted for
	reported bool      // the warning about unusable probes was given
}

// New returns a monitor that has not looked yet: it has no verdicts.
func New(opt Options) *Monitor {
	def := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&opt.Interval, 2*time.Second)
	def(&opt.Timeout, 1400*time.Millisecond)
	def(&opt.PublicInterval, max(2*time.Second, opt.Interval))
	def(&opt.PublicTimeout, max(3*time.Second, opt.Timeout))
	def(&opt.Hold, 10*time.Second)
	def(&opt.MaxHold, 10*time.Minute)
	for v, d := range map[*int]int{&opt.Down: 3, &opt.OK: 10, &opt.Up: 6} {
		if *v == 0 {
			*v = d
		}
	}
	return &Monitor{opt: opt, seen: map[string]*seen{}, changed: make(chan struct{}), looking: map[string]bool{}, looks: make(chan string, 16)}
}

// Verdicts returns the verdict on each site, whether none of them is about to
// change, and false if the view is too old to be used.
func (m *Monitor) Verdicts() (vs []Verdict, settled, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.verdicts, m.settled, time.Since(m.at) < max(5*m.opt.Interval, 10*time.Second)+m.opt.Timeout
}

// Views returns this node's observations, for the other nodes.
func (m *Monitor) Views() map[string]View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.views()
}

func (m *Monitor) views() map[string]View {
	views := map[string]View{}
	for name, s := range m.seen {
		views[name] = s.view()
	}
	return views
}

func (s *seen) view() View {
	return View{Peer: s.peer.good() && s.gone.good(), Public: s.gone.good() && s.smtp.good() && (!s.dns.ever || s.dns.good()), Usable: s.smtp.ever}
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
		case ok && v.reached():
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

// judgeAll renews the verdicts.
func (m *Monitor) judgeAll(targets []Target, now time.Time) {
	old := m.verdicts
	var vs []Verdict
	settled, isolated := true, m.isolated(targets)
	for _, t := range targets {
		if !t.judged() {
			continue
		}
		s := m.seen[t.Name]
		if s == nil {
			continue // it has just come
		}
		v := judge(t, s, m.others(targets, t), isolated)
		v.Name, v.Since = t.Name, now
		if i := slices.IndexFunc(old, func(o Verdict) bool { return o.Name == t.Name && o.State == v.State }); i >= 0 {
			v.Since = old[i].Since
		} else if i := slices.IndexFunc(old, func(o Verdict) bool { return o.Name == t.Name }); i >= 0 || v.State != Up {
			m.opt.Log.Warn("health verdict", "site", t.Name, "state", v.State, "reason", v.Reason)
		}
		settled = settled && v.State == Up && s.settled()
		vs = append(vs, v)
	}
	same := slices.EqualFunc(old, vs, func(a, b Verdict) bool { return a.Name == b.Name && a.State == b.State }) && settled == m.settled
	m.verdicts, m.settled = vs, settled
	if !same {
		close(m.changed)
		m.changed = make(chan struct{})
	}
	m.tell()
}

// tell calls OwnChanged if this node has something new to say.
func (m *Monitor) tell() {
	if m.opt.OwnChanged == nil || m.own == nil || m.own.report == nil {
		return
	}
	r := m.own.report
	said := fmt.Sprint(r.Accepting, r.Drained, r.DrainedUntil, m.views()) // maps are printed in order
	if m.told != "" && said != m.told {
		m.opt.OwnChanged()
	}
	m.told = said
}

// isolated reports whether this node seems to be cut off: no anchor and no other node
// answers.
func (m *Monitor) isolated(targets []Target) bool {
	if m.anchors.good() {
		return false
	}
	for _, t := range targets {
		if s := m.seen[t.Name]; !t.Self && t.Exchange == nil && s != nil && s.gone.good() {
			return false
		}
	}
	return true
}

// Isolated reports whether this node seems to be cut off from everything: no anchor and
// no other node answers. Never, if no anchors are configured.
func (m *Monitor) Isolated() bool {
	targets := m.opt.Targets()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.isolated(targets)
}

// settled reports whether no observation is on its way to change.
func (s *seen) settled() bool {
	return s.peer.failures == 0 && s.gone.failures == 0 && (!s.smtp.ever || s.smtp.failures == 0) && (!s.dns.ever || s.dns.failures == 0)
}

// others returns the views of t that third nodes, whose report is at hand, have. A node
// that reaches no site at all has a trouble of its own and tells nothing (row 11).
func (m *Monitor) others(targets []Target, t Target) map[string]View {
	views := map[string]View{}
	for _, o := range targets {
		s := m.seen[o.Name]
		if o.Self || o.Name == t.Name || s == nil || s.report == nil {
			continue
		}
		if !slices.ContainsFunc(targets, func(x Target) bool { return x.Site && x.Name != o.Name && s.report.Views[x.Name].reached() }) {
			continue
		}
		if v, ok := s.report.Views[t.Name]; ok {
			views[o.Name] = v
		}
	}
	return views
}
