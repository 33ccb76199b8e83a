package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// world is a Prober whose answers a test sets.
type world struct {
	mu      sync.Mutex
	reports map[string]Report // absent: peer port does not answer
	smtp    map[string]bool   // by address
	dns     map[string]bool
	cutOff  bool // no anchor answers
}

func (w *world) Report(_ context.Context, name string) (Report, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r, ok := w.reports[name]; ok {
		return r, nil
	}
	return Report{}, errors.New("no answer")
}

func (w *world) answer(m map[string]bool, a string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m[a] {
		return nil
	}
	return errors.New("refused")
}

func (w *world) SMTP(_ context.Context, a, _ string) error    { return w.answer(w.smtp, a) }
func (w *world) DNS(_ context.Context, a string) error        { return w.answer(w.dns, a) }
func (w *world) Greeting(ctx context.Context, a string) error { return w.SMTP(ctx, a, "") }
func (w *world) Anchor(_ context.Context, a string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cutOff {
		return errors.New("no route")
	}
	return nil
}

func (w *world) set(f func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reports, w.smtp, w.dns = maps.Clone(w.reports), maps.Clone(w.smtp), maps.Clone(w.dns)
	f(w)
}

func fine() *world {
	ok := Report{Accepting: true}
	return &world{reports: map[string]Report{"me": ok, "you": ok, "wit": ok},
		smtp: map[string]bool{"me:25": true, "you:25": true}, dns: map[string]bool{"me:53": true, "you:53": true}}
}

func monitor(w *world, witness bool) *Monitor {
	ts := []Target{
		{Name: "me", Self: true, Site: true, SMTP: []string{"me:25"}, DNS: []string{"me:53"}},
		{Name: "you", Site: true, SMTP: []string{"you:25"}, DNS: []string{"you:53"}},
	}
	if witness {
		ts = append(ts, Target{Name: "wit"})
	}
	return New(Options{Anchors: []string{"anchor:53"}, Prober: w, Targets: func() []Target { return ts }, Log: slog.New(slog.DiscardHandler)})
}

func states(m *Monitor) (me, you State) {
	vs, _, _ := m.Verdicts()
	for _, v := range vs {
		if v.Name == "me" {
			me = v.State
		} else {
			you = v.State
		}
	}
	return me, you
}

func rounds(m *Monitor, n int) {
	for range n {
		time.Sleep(m.opt.Interval)
		m.public(context.Background())
		m.pulse(context.Background())
	}
}

// One lost answer changes nothing, not even of what a node said of itself: a drained
// node that reboots must not get mail for a while.
func TestLastReportCountsUntilThePeerIsBad(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		report Report
		state  State
	}{{Report{Accepting: true, Drained: true}, Drained}, {Report{Reason: "disk"}, Down}} {
		synctest.Test(t, func(t *testing.T) {
			w := fine()
			w.set(func(w *world) { w.reports["you"] = tc.report })
			m := monitor(w, false)
			rounds(m, 12)
			w.set(func(w *world) { delete(w.reports, "you") })
			for n := range 2 {
				rounds(m, 1)
				if _, you := states(m); you != tc.state {
					t.Errorf("%d lost answers turn %s into %s", n+1, tc.state, you)
				}
			}
			w.set(func(w *world) { delete(w.smtp, "you:25") })
			rounds(m, 3)
			if _, you := states(m); you != Down {
				t.Errorf("gone for good, and %s", you)
			}
		})
	}
}

// Where outgoing DNS is blocked the SMTP probe still counts, and the other way round
// the DNS probe does not stand in for it.
func TestEachProbeIsUsedForItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		w.set(func(w *world) { delete(w.dns, "you:53") })
		m := monitor(w, false)
		rounds(m, 12)
		if _, you := states(m); you != Up {
			t.Error("demoted by a probe that never worked")
		}
		w.set(func(w *world) { delete(w.smtp, "you:25") })
		rounds(m, 3)
		if _, you := states(m); you != Down {
			t.Error("its SMTP is dead")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		w.set(func(w *world) { delete(w.smtp, "you:25") })
		m := monitor(w, false)
		rounds(m, 12)
		w.set(func(w *world) { delete(w.reports, "you") })
		rounds(m, 3)
		if _, you := states(m); you != Down {
			t.Error("DNS alone says nothing of its SMTP")
		}
	})
}

// A witness has no public name to say in EHLO.
func TestProbeSMTPWithoutAName(t *testing.T) {
	t.Parallel()
	web := httptest.NewTLSServer(nil)
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	said := make(chan []string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		var lines []string
		defer func() { said <- lines }()
		fmt.Fprint(c, "220 example.com\r\n")
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			lines = append(lines, strings.TrimSpace(line))
			switch {
			case strings.HasPrefix(line, "EHLO"):
				fmt.Fprint(c, "250-example.com\r\n250 STARTTLS\r\n")
			case strings.HasPrefix(line, "STARTTLS"):
				fmt.Fprint(c, "220 go on\r\n")
				c = tls.Server(c, &tls.Config{Certificates: web.TLS.Certificates})
				r = bufio.NewReader(c)
			default:
				fmt.Fprint(c, "221 bye\r\n")
			}
		}
	}()
	if err := ProbeSMTP(t.Context(), l.Addr().String(), "example.com", ""); err != nil {
		t.Error(err)
	}
	if got := <-said; len(got) != 4 || got[2] != "EHLO [127.0.0.1]" {
		t.Errorf("said %q", got)
	}
	if got := literal(&net.TCPAddr{IP: net.ParseIP("2001:db8::1")}); got != "[IPv6:2001:db8::1]" {
		t.Errorf("IPv6: %s", got)
	}
}

// Many facilities block outgoing port 25: a probe that never worked says nothing.
func TestBlockedEgressIsIgnored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		w.set(func(w *world) { delete(w.smtp, "you:25") })
		m := monitor(w, false)
		rounds(m, 50)
		if _, you := states(m); you != Up {
			t.Error("demoted by a probe that never worked")
		}
		if vs, settled, _ := m.Verdicts(); vs[1].Row != RowUnusable || !settled {
			t.Errorf("settled %v, %+v", settled, vs)
		}
		w.set(func(w *world) { delete(w.reports, "you") })
		rounds(m, 3)
		if _, you := states(m); you != Down {
			t.Error("the peer port is gone too: must be demoted")
		}
	})
}

func TestThresholds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		m := monitor(w, false)
		rounds(m, 1)
		kill := func(w *world) { delete(w.reports, "you"); delete(w.smtp, "you:25") }
		revive := func(w *world) { w.reports["you"], w.smtp["you:25"] = Report{Accepting: true}, true }

		w.set(kill)
		rounds(m, 2)
		if _, you := states(m); you != Up {
			t.Error("down after two failures")
		}
		if _, settled, _ := m.Verdicts(); settled {
			t.Error("settled while a verdict is about to change")
		}
		w.set(revive)
		rounds(m, 9) // not enough to forgive
		w.set(kill)
		rounds(m, 1)
		if _, you := states(m); you != Down {
			t.Error("three failures with few successes between are not down")
		}
		upAfter := func() (n int) {
			w.set(revive)
			for _, you := states(m); you != Up && n < 1000; _, you = states(m) {
				rounds(m, 1)
				n++
			}
			return n
		}
		first := upAfter()
		if first < 6 || first > 8 {
			t.Errorf("up again after %d rounds, want 6 at the least", first)
		}
		var last int
		for range 5 { // flapping: the hold doubles
			w.set(kill)
			rounds(m, 3)
			last = upAfter()
		}
		if last < 60 || last > 400 {
			t.Errorf("after flapping, up again after %d rounds", last)
		}
		rounds(m, 20)
		if _, settled, _ := m.Verdicts(); !settled {
			t.Error("never settles")
		}
	})
}

func TestStaleViewIsNotUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := monitor(fine(), false)
		if _, _, fresh := m.Verdicts(); fresh {
			t.Error("fresh before the first round")
		}
		ctx, cancel := context.WithCancel(t.Context())
		go m.Run(ctx)
		time.Sleep(time.Minute)
		if _, _, fresh := m.Verdicts(); !fresh {
			t.Error("not fresh while running")
		}
		changed := m.Changed()
		cancel()
		time.Sleep(time.Minute)
		if _, _, fresh := m.Verdicts(); fresh {
			t.Error("fresh a minute after the last round")
		}
		select {
		case <-changed:
			t.Error("a change was announced where there was none")
		default:
		}
	})
}

// A node that cannot reach its own SMTP port says so until it is well again.
func TestOwnSMTP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		m := monitor(w, false)
		if err := m.OwnSMTP(); err != nil {
			t.Errorf("before the first look: %v", err)
		}
		w.set(func(w *world) { delete(w.smtp, "me:25") })
		rounds(m, 2)
		if err := m.OwnSMTP(); err != nil {
			t.Errorf("after two failures: %v", err)
		}
		rounds(m, 1)
		if err := m.OwnSMTP(); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("after three failures: %v", err)
		}
		w.set(func(w *world) { w.smtp["me:25"] = true })
		rounds(m, 1)
		if err := m.OwnSMTP(); err == nil {
			t.Error("well after one answer")
		}
		rounds(m, 10)
		if err := m.OwnSMTP(); err != nil {
			t.Errorf("after eleven answers: %v", err)
		}
	})
}
