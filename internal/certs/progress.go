package certs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"msgw/internal/durable"
)

// progress is how far the orders for a name are. It survives restarts, so that a node that
// restarts again and again does not use up what the CA allows.
type progress struct {
	Directory string    `json:"directory,omitempty"` // that the certificate in file is from
	Last      time.Time `json:"last,omitzero"`       // when it was last ordered
	Error     string    `json:"error,omitempty"`     // why that failed
	Failures  int       `json:"failures,omitempty"`  // since the last success
	Begun     bool      `json:"begun,omitempty"`     // an order is under way
	Next      time.Time `json:"next,omitzero"`       // after a failure: not before
	Obtained  time.Time `json:"obtained,omitzero"`   // when the last order succeeded
	Early     bool      `json:"early,omitempty"`     // it was made by itself soon after the one before
	// Info is when the CA would have the certificate renewed, as asked at InfoAt.
	Info   acme.RenewalInfo `json:"info,omitzero"`
	InfoAt time.Time        `json:"info_at,omitzero"`

	alerted, alertedEnd bool // that it is late, or has ended, was called an error
}

// state is what survives a restart, beside keys and certificates.
type state struct {
	Orders map[string]*progress `json:"orders"`
}

const stateFile = "state.json"

// readState returns a state also with an error.
func readState(dir string) (*state, error) {
	s := &state{}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err == nil {
		err = json.Unmarshal(b, s)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, p := range s.Orders {
		if p != nil && p.Begun {
			p.Begun = false
			p.failed(errors.New("the node ended during the order"), p.Last)
		}
	}
	if err != nil || s.Orders == nil {
		s.Orders = map[string]*progress{}
	}
	return s, err
}

// of is the progress of a name.
func (s *state) of(name string) *progress {
	p := s.Orders[name]
	if p == nil {
		p = &progress{}
		s.Orders[name] = p
	}
	return p
}

func (m *Manager) saveState() error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	b, err := json.MarshalIndent(m.state, "", "  ")
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return durable.ReplaceFile(m.path(stateFile), b)
}

// pauses follow failures; the last one repeats. Five attempts in an hour are what Let's
// Encrypt allows to fail: https://letsencrypt.org/docs/rate-limits/
var pauses = []time.Duration{2 * time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour}

// maxRateLimited bounds how long a CA's word of its rate limits is waited for.
const maxRateLimited = 48 * time.Hour

// pauseAfter is how long to wait after so many failures, of which err is the last.
func pauseAfter(failures int, err error, now time.Time) time.Duration {
	d := pauses[min(max(failures, 1), len(pauses))-1]
	d += rand.N(d/5) - d/10 // the sites do not come at once
	var refused *refusedError
	if errors.As(err, &refused) && refused.Type == "rateLimited" {
		d = max(d, time.Hour)
		if until, ok := retryAfter(refused.Detail); ok {
			d = min(max(d, until.Sub(now)+time.Minute), maxRateLimited)
		}
	}
	return d
}

// retryText is how Let's Encrypt says until when: certmagic does not tell the header.
var retryText = regexp.MustCompile(`retry after (\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}) UTC`)

func retryAfter(detail string) (time.Time, bool) {
	m := retryText.FindStringSubmatch(detail)
	if m == nil {
		return time.Time{}, false
	}
	t, err := time.Parse(time.DateTime, m[1])
	return t, err == nil
}

// infoStale reports whether the CA is to be asked again when it would have the certificate
// renewed (RFC 9773 section 4.3).
func (p *progress) infoStale(now time.Time) bool {
	next := p.InfoAt.Add(6 * time.Hour)
	if r := p.Info.RetryAfter; r != nil {
		next = clamp(*r, p.InfoAt.Add(10*time.Minute), p.InfoAt.Add(24*time.Hour))
	}
	return now.After(next) || now.Before(p.InfoAt)
}

func clamp(t, from, to time.Time) time.Time {
	switch {
	case t.Before(from):
		return from
	case t.After(to):
		return to
	}
	return t
}

// noteInfo takes down what the CA said. The time that was drawn from a window stays as long
// as the window does.
func (p *progress) noteInfo(info acme.RenewalInfo, err error, now time.Time) {
	p.InfoAt = now
	switch {
	case err != nil && p.Info.HasWindow() && !errors.Is(err, acme.ErrUnsupported):
		p.Info.RetryAfter = nil // what it said last still holds
	case err != nil:
		p.Info = acme.RenewalInfo{}
	default:
		if info.SameWindow(p.Info) && !p.Info.SelectedTime.IsZero() {
			info.SelectedTime = p.Info.SelectedTime
		}
		p.Info = info
	}
}

// due is when a certificate that is held is to be renewed: when the CA would have it, but
// not too late; else when a third of its life is left.
func (p *progress) due(from, until time.Time) time.Time {
	life := until.Sub(from)
	if at := p.Info.SelectedTime; !at.IsZero() {
		return clamp(at, from, until.Add(-life/6))
	}
	return until.Add(-life / 3)
}

// settled is when a certificate that was obtained early may be renewed again at the earliest: a
// CA may have one replaced at once that it just issued, but one whose windows are always past
// would be asked every minute until it refuses.
func (p *progress) settled(from, until, now time.Time) time.Time {
	if !p.Early || now.Before(p.Obtained) { // the clock was ahead then
		return time.Time{}
	}
	return p.Obtained.Add(min(24*time.Hour, until.Sub(from)/6))
}

// early reports whether a renewal comes before a sixth of a certificate's life is over.
func (p *progress) early(from, until, now time.Time) bool {
	return now.Before(p.Obtained.Add(until.Sub(from) / 6))
}

// notBefore is when the next order may be made.
func (p *progress) notBefore(now time.Time) time.Time {
	if p.Failures == 0 || now.Before(p.Last) || p.Next.Sub(now) > maxRateLimited+time.Hour { // the clock was ahead then
		return time.Time{}
	}
	return p.Next
}

// failed takes down a failure.
func (p *progress) failed(err error, now time.Time) {
	p.Failures++
	p.Error = fmt.Sprintf("%.500s", strings.Join(strings.Fields(err.Error()), " "))
	p.Next = now.Add(pauseAfter(p.Failures, err, now))
}

// ended reports whether an order failed because it was called off, which is no failure.
func ended(ctx context.Context) bool { return errors.Is(ctx.Err(), context.Canceled) }
