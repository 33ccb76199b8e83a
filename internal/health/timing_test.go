package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// wire is a Prober of two sites with packets that take time and are lost.
type wire struct {
	world
	rtt  time.Duration
	loss float64 // of a packet
	rand *rand.Rand

	fate sync.Mutex
	dead func(port string) error // how you fail; nil: you live. errSilent: no answer
}

var errSilent = errors.New("silent")

// exchange is a number of packets there and back, each repeated by TCP when it is lost.
func (w *wire) exchange(ctx context.Context, syn bool, packets int) error {
	var d time.Duration
	w.fate.Lock()
	for i := range packets {
		rto := 200*time.Millisecond + w.rtt // Linux: at the least
		if i == 0 && syn {
			rto = time.Second // RFC 6298 section 2
		}
		for w.rand.Float64() < 2*w.loss { // there or back
			d += rto
			rto *= 2
		}
		d += w.rtt
	}
	w.fate.Unlock()
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *wire) meet(ctx context.Context, name, port string, syn bool, packets int) error {
	if name == "me" {
		return nil
	}
	w.fate.Lock()
	dead := w.dead
	w.fate.Unlock()
	if dead != nil {
		if err := dead(port); errors.Is(err, errSilent) {
			<-ctx.Done()
			return ctx.Err()
		} else if err != nil {
			time.Sleep(w.rtt)
			return err
		}
	}
	return w.exchange(ctx, syn, packets)
}

func (w *wire) Report(ctx context.Context, name string) (Report, error) {
	if err := w.meet(ctx, name, "8451", false, 1); err != nil {
		return Report{}, err
	}
	return Report{Accepting: true}, nil
}

func (w *wire) SMTP(ctx context.Context, a, _ string) error {
	host, port, _ := net.SplitHostPort(a)
	return w.meet(ctx, host, port, true, 8)
}

func (w *wire) Greeting(ctx context.Context, a string) error {
	host, port, _ := net.SplitHostPort(a)
	return w.meet(ctx, host, port, true, 2)
}

func (w *wire) DNS(ctx context.Context, a string) error {
	host, port, _ := net.SplitHostPort(a)
	return w.meet(ctx, host, port, false, 1)
}

func (w *wire) kill(f func(port string) error) {
	w.fate.Lock()
	defer w.fate.Unlock()
	w.dead = f
}

func (w *wire) run(t *testing.T, timing Timing) (*Monitor, func()) {
	t.Helper()
	ts := []Target{{Name: "me", Self: true, Site: true, SMTP: []string{"me:25"}, DNS: []string{"me:53"}},
		{Name: "you", Site: true, SMTP: []string{"you:25"}, DNS: []string{"you:53"}}}
	m := New(Options{Timing: timing, Prober: w, Targets: func() []Target { return ts }, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	return m, func() { cancel(); <-done }
}

// until waits for a state of you and returns how long it took.
func until(m *Monitor, state State, limit time.Duration) time.Duration {
	began := time.Now()
	for time.Since(began) < limit {
		if _, you := states(m); you == state {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// How long it takes until a site that dies is answered last, at whatever moment it dies.
func TestTimeToNotice(t *testing.T) {
	t.Parallel()
	silent := func(string) error { return errSilent }
	refuses := func(port string) error { return fmt.Errorf("port %s: %w", port, syscall.ECONNREFUSED) }
	closes := func(port string) error { // what stands before it takes the connection, and lets go
		if port == "25" {
			return fmt.Errorf("greeting: %w", io.EOF)
		}
		return syscall.ECONNREFUSED
	}
	for name, tc := range map[string]struct {
		timing Timing
		dead   func(string) error
		broken bool // the connection on the peer port breaks audibly
		within time.Duration
	}{
		"killed":                          {Timing{}, refuses, true, time.Second},
		"killed, fast":                    {Fast(), refuses, true, 300 * time.Millisecond},
		"killed behind a proxy":           {Timing{}, closes, true, time.Second},
		"killed, nobody tells":            {Timing{}, refuses, false, 2500 * time.Millisecond},
		"silent":                          {Timing{}, silent, false, 7 * time.Second},
		"silent, fast":                    {Fast(), silent, false, 1500 * time.Millisecond},
		"killed, machine unplugged later": {Timing{}, silent, true, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var worst time.Duration
				for moment := range 41 {
					w := &wire{rtt: 20 * time.Millisecond, rand: rand.New(rand.NewPCG(1, uint64(moment)))}
					m, stop := w.run(t, tc.timing)
					time.Sleep(time.Minute + time.Duration(moment)*51*time.Millisecond)
					w.kill(tc.dead)
					if tc.broken {
						m.Look("you")
					}
					worst = max(worst, until(m, Down, time.Minute))
					w.kill(nil)
					if back := until(m, Up, 10*time.Minute); back < m.opt.Hold-worst {
						t.Errorf("back after %v, want no sooner than the hold", back)
					}
					stop()
				}
				if t.Logf("%v at the worst moment", worst); worst > tc.within {
					t.Errorf("noticed after %v, want %v", worst, tc.within)
				}
			})
		})
	}
}

// One packet in a hundred is lost for an hour: nothing is demoted, also while the peer
// path is cut and SMTP tells alone.
func TestNoFlappingAtLoss(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		timing Timing
		dead   func(port string) error
		rtt    time.Duration
	}{
		{"default", Timing{}, nil, 30 * time.Millisecond},
		{"default, 100 ms away", Timing{}, nil, 100 * time.Millisecond},
		{"default, 200 ms away", Timing{}, nil, 200 * time.Millisecond},
		{"fast", Fast(), nil, 30 * time.Millisecond},
		{"default, peer path cut", Timing{}, peerPathCut, 30 * time.Millisecond},
		{"fast, peer path cut", Fast(), peerPathCut, 30 * time.Millisecond},
	} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(tc.name, ", seed ", seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := &wire{rtt: tc.rtt, loss: 0.01, rand: rand.New(rand.NewPCG(2, seed))}
					m, stop := w.run(t, tc.timing)
					defer stop()
					time.Sleep(time.Minute)
					w.kill(tc.dead)
					for end := time.Now().Add(time.Hour); time.Now().Before(end); {
						changed := m.Changed()
						select {
						case <-changed:
							if me, you := states(m); me != Up || you != Up {
								vs, _, _ := m.Verdicts()
								t.Fatalf("demoted: %+v", vs)
							}
						case <-time.After(time.Minute):
						}
					}
				})
			})
		}
	}
}

func peerPathCut(port string) error {
	if port == "8451" {
		return errSilent
	}
	return nil
}

// Looking at a site that is well, however often, does nothing to it.
func TestLookIsHarmless(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{rtt: time.Millisecond, rand: rand.New(rand.NewPCG(3, 3))}
		m, stop := w.run(t, Timing{})
		defer stop()
		time.Sleep(time.Minute)
		for range 100 { // more than are kept
			m.Look("you")
			m.Look("nobody")
		}
		time.Sleep(time.Second)
		if _, you := states(m); you != Up {
			t.Error("demoted by looking")
		}
	})
}

// What a node says of itself is told as soon as it changes.
func TestOwnChanged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, told := fine(), 0
		m := monitor(w, false)
		m.opt.OwnChanged = func() { told++ }
		rounds(m, 5)
		if told != 0 {
			t.Errorf("told %d times of nothing", told)
		}
		w.set(func(w *world) { w.reports["me"] = Report{Accepting: true, Drained: true} })
		m.look(t.Context(), "me")
		if told != 1 {
			t.Errorf("told %d times of a drain, want 1", told)
		}
		if me, _ := states(m); me != Drained {
			t.Errorf("own state %s", me)
		}
		rounds(m, 5)
		if told != 1 {
			t.Errorf("told %d times of a drain, want 1", told)
		}
	})
}

// late is a Prober whose witness is silent: a pulse waits for it, with the other answers in
// hand.
type late struct{ *world }

func (l late) Report(ctx context.Context, name string) (Report, error) {
	if name != "wit" {
		return l.world.Report(ctx, name)
	}
	<-ctx.Done()
	return Report{}, ctx.Err()
}

// What a node said before it said something else does not count any more, though the pulse
// that asked it ends later.
func TestOldAnswersDoNotCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		m := monitor(w, true)
		m.opt.Prober = late{w}
		for range 4 {
			m.pulse(t.Context())
		}
		done := make(chan struct{})
		go func() { defer close(done); m.pulse(t.Context()) }()
		time.Sleep(100 * time.Millisecond)
		w.set(func(w *world) { w.reports["you"] = Report{Accepting: true, Drained: true} })
		m.look(t.Context(), "you")
		if _, you := states(m); you != Drained {
			t.Fatalf("drained, and looked at: %s", you)
		}
		<-done
		if _, you := states(m); you != Drained {
			t.Errorf("an older answer made it %s", you)
		}
	})
}

// Out of reach is what fails three times in a row, not now and then: where the peer path is
// cut, one lost packet in a while is no outage.
func TestOutOfReachIsInARow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		m := monitor(w, false)
		rounds(m, 12)
		w.set(func(w *world) { delete(w.reports, "you") })
		for i := range 20 {
			w.set(func(w *world) { w.smtp["you:25"] = i%3 == 0 })
			time.Sleep(m.opt.Interval)
			m.pulse(t.Context())
			if !m.seen["you"].gone.good() {
				t.Fatalf("out of reach after %d pulses, of which every third was answered", i+1)
			}
		}
		w.set(func(w *world) { delete(w.smtp, "you:25") })
		for range 3 {
			time.Sleep(m.opt.Interval)
			m.pulse(t.Context())
		}
		if m.seen["you"].gone.good() {
			t.Error("in reach after three failures in a row")
		}
	})
}
