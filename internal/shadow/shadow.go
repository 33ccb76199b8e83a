// Package shadow keeps a copy of each site's messages at the other site.
//
// A site owns the messages that it took. Its Shipper sends each one to the other site
// while it is being stored, and says that it is safe only when both sites have flushed
// it, or when the stated policy lets one copy do. The other site's Holder keeps the
// copies, and lists them for the archive if the owner is gone for long.
//
// It promises: nothing is called safe at both sites that is not; what a site lost and
// the other holds comes back; what was deleted at either is deleted at both, or handed
// over twice, never lost.
//
// DESIGN.md describes the protocol, the states and what happens at each failure.
package shadow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"msgw/internal/disk"
	"msgw/internal/journal"
)

var (
	// ErrSingle says that the message would have one copy only, which the policy does
	// not allow, or that waiting for the other site took too long. Nothing was taken.
	ErrSingle = errors.New("the other site did not confirm a copy")
	// ErrAlone says that there is no other site.
	ErrAlone = errors.New("there is no other site")
)

// State says how a site stands to the other one.
type State string

const (
	Sync     State = "SYNC"     // every message has two copies, and new ones get them
	Hold     State = "HOLD"     // the other site does not answer; senders wait
	Degraded State = "DEGRADED" // it has not answered for long; the policy decides
	CatchUp  State = "CATCHUP"  // it is back, and messages of before are on their way
	Alone    State = "ALONE"    // there is none
)

// Times are the waits of a Shipper. Zero means the default.
type Times struct {
	Refused time.Duration // from a broken link that the other site refuses to renew, to DEGRADED; default 2 s
	Silent  time.Duration // from the last sign of life to DEGRADED; default 15 s
	Wait    time.Duration // how long a sender waits after its message, at most; default 45 s
	Compare time.Duration // between two comparisons of what the sites hold; default 1 min
	Return  time.Duration // how long after a start the other site is waited for before messages are listed; default 2 min
	Ping    time.Duration // between two signs of life; default 1 s
}

// OrDefaults fills in the defaults.
func (t Times) OrDefaults() Times {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&t.Refused, 2 * time.Second}, {&t.Silent, 15 * time.Second}, {&t.Wait, 45 * time.Second}, {&t.Compare, time.Minute},
		{&t.Return, 2 * time.Minute}, {&t.Ping, time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return t
}

// Options of a Shipper.
type Options struct {
	Own *journal.Journal // this site's messages, opened with KeepGraves
	// Dial connects to the other site's Holder. It returns ErrAlone if there is none.
	Dial func(context.Context) (net.Conn, error)
	Dir  string  // for what must survive a restart
	FS   disk.FS // that Dir is on; nil: the machine's
	// Settings are asked for whenever they are needed: they may change. nil: the defaults.
	Settings func() Settings
	Log      *slog.Logger
}

// Settings of a Shipper.
type Settings struct {
	Times
	// Bandwidth bounds what is sent of messages that nobody waits for, in octets per
	// second; 0: not bounded.
	Bandwidth int64
}

func (s *Shipper) settings() Settings {
	if s.opt.Settings == nil {
		return Settings{}
	}
	return s.opt.Settings()
}

func (s *Shipper) times() Times { return s.settings().Times.OrDefaults() }

// Shipper sends this site's messages to the other one. Run must run.
type Shipper struct {
	opt   Options
	own   *journal.Journal
	log   *slog.Logger
	start time.Time

	work chan struct{} // there is something to send
	told chan struct{} // there are deletions to be told, or damage to be repaired
	hurt atomic.Bool   // damage was found here
	// adopted says that the other site hands this one's messages over.
	adopted atomic.Bool
	offers  sync.WaitGroup

	mu        sync.Mutex
	state     status
	changed   chan struct{} // closed when the state changes
	link      *link         // nil while there is none
	heard     time.Time     // from the other site
	broken    time.Time     // when the link was lost; zero while it is there
	refused   bool          // the other site refused to renew it
	alone     bool
	compared  bool                    // with this link
	ended     bool                    // Run has ended
	listable  bool                    // the other site has given back what it adopted, or was waited for long enough
	tickets   map[journal.ID]*ticket  // messages that somebody waits for
	missing   map[journal.ID]struct{} // listed messages that the other site is not known to hold
	conflicts map[journal.ID]struct{} // messages that differ between the sites
	trouble   error                   // why the other site does not store
	troubled  time.Time               // since when
	refusal   time.Time               // when it last said so
	lost      int                     // messages that only the other site holds and that could not be fetched
	beyond    map[journal.ID]struct{} // damaged messages, here or there, that could not be repaired
	mended    int                     // those that were, by this process
}

// Open reads the state of an earlier process and makes a Shipper.
func Open(opt Options) (*Shipper, error) {
	s := &Shipper{opt: opt, own: opt.Own, log: opt.Log, start: time.Now(), work: make(chan struct{}, 1), told: make(chan struct{}, 1), changed: make(chan struct{}),
		tickets: map[journal.ID]*ticket{}, missing: map[journal.ID]struct{}{}, conflicts: map[journal.ID]struct{}{}}
	if s.opt.FS == nil {
		s.opt.FS = disk.OS{}
	}
	s.heard, s.broken = s.start, s.start
	var err error
	if s.state, err = loadStatus(s.opt.FS, opt.Dir); err != nil {
		return nil, err
	}
	if s.state.State != Degraded {
		s.state = status{State: Hold, Since: s.start.UTC(), ID: s.state.ID}
	}
	return s, nil
}

// Report is how a Shipper stands.
type Report struct {
	State     State     `json:"state"`
	Since     time.Time `json:"since"`
	ID        uint64    `json:"id"`       // grows with every change
	Compared  bool      `json:"compared"` // whether Single is known to be complete
	Single    int       `json:"single"`   // messages that the other site is not known to hold
	Lost      int       `json:"lost"`     // messages that only the other site holds and that could not be fetched
	Conflicts int       `json:"conflicts"`
	Damaged   int       `json:"damaged"`  // messages, here or there, that could not be repaired from the other site's copy
	Repaired  int       `json:"repaired"` // those that were, by this process
	Heard     time.Time `json:"heard"`    // when the other site last answered
	Trouble   string    `json:"trouble,omitempty"`
}

// Report returns how things stand.
func (s *Shipper) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{State: s.state.State, Since: s.state.Since, ID: s.state.ID, Compared: s.compared, Single: len(s.missing), Lost: s.lost,
		Conflicts: len(s.conflicts), Damaged: len(s.beyond), Repaired: s.mended, Heard: s.heard}
	if s.trouble != nil {
		r.Trouble = s.trouble.Error()
	}
	return r
}

// Single returns the messages that the other site is not known to hold. complete is
// false until the sites have compared what they hold.
func (s *Shipper) Single() (ids []journal.ID, complete bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.missing {
		ids = append(ids, id)
	}
	return ids, s.compared
}

// Listable returns whether this site's messages may be listed: the other site has
// given back what it adopted, or was waited for long enough.
func (s *Shipper) Listable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listable || s.alone || time.Since(s.start) >= s.times().Return
}

// Refuse says why a message under the policy cannot be taken now, or nil. Ask it at
// MAIL: then nothing is sent in vain.
func (s *Shipper) Refuse(strict bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strict && (s.state.State == Degraded || s.state.State == Alone) {
		return fmt.Errorf("%w: state is %s since %s", ErrSingle, s.state.State, s.state.Since.Format(time.RFC3339))
	}
	return nil
}

// Deleted tells the Shipper that messages were deleted, so that the other site hears
// of it soon.
func (s *Shipper) Deleted(ids ...journal.ID) {
	s.mu.Lock()
	for _, id := range ids {
		if s.tickets[id] == nil {
			delete(s.missing, id)
		}
	}
	s.mu.Unlock()
	wake(s.told)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
