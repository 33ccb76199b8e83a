//go:build hostile

package hostile

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
)

const (
	sessions = 8                      // of the sender
	pace     = 250 * time.Millisecond // from message to message in each of them
	short    = 10                     // messages after which every other session ends
	size     = 8 << 10                // of a message
	seed     = 6
)

// good is a well-behaved sender with a well-behaved archive behind it.
type good struct {
	t     *testing.T
	f     lab.File
	box   lab.Mailbox
	trust *x509.CertPool
	snd   *sender.Sender

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	next   atomic.Int64 // number of a message

	mu       sync.Mutex
	sent     []sent
	maybe    map[int]bool // sent, and the reply was lost
	errors   []string
	fetched  map[int]int // how often a message was fetched
	stranger int         // fetched what was not sent

	polls, failed atomic.Int64
	lastFailure   atomic.Value
}

// sent is a message that got a 250.
type sent struct {
	i    int
	at   time.Time
	took time.Duration
}

func newGood(t *testing.T, f lab.File, box lab.Mailbox) *good {
	t.Helper()
	g := &good{t: t, f: f, box: box, trust: x509.NewCertPool(), maybe: map[int]bool{}, fetched: map[int]int{}}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	g.trust.AppendCertsFromPEM(pem)
	want := netip.MustParseAddrPort(f.Nodes[0].SMTP)
	g.snd, err = sender.New(sender.Config{Servers: []string{f.Nodes[1].DNS}, Helo: "journal.example.net", TLS: &tls.Config{RootCAs: g.trust}, RequireTLS: true,
		Address: func(a netip.Addr) netip.AddrPort { // only the site that is attacked
			if a == want.Addr() {
				return want
			}
			return netip.AddrPortFrom(a, 1)
		},
		Timeouts: sender.Timeouts{Query: 5 * time.Second, Connect: 10 * time.Second, Reply: 30 * time.Second, Block: 30 * time.Second, Final: 60 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	t.Cleanup(g.end)
	return g
}

func (g *good) begin() {
	for k := range sessions {
		g.wg.Go(func() { g.send(k%2 == 1) })
	}
	g.wg.Go(g.poll)
}

func (g *good) end() {
	g.cancel()
	g.wg.Wait()
}

// send is one session after the other. A message that fails is sent again until it is
// acknowledged, as a queue would, but for the reply that was lost: that one is left.
func (g *good) send(ends bool) {
	var x *sender.Session
	tick := time.NewTicker(pace) // drops what comes too late
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-tick.C:
		case <-g.ctx.Done():
			if x != nil {
				x.Close()
			}
			return
		}
		i := int(g.next.Add(1))
		message := report.New(seed, i, size)
		for start := time.Now(); ; {
			var err error
			// What is under way is finished when the test ends.
			if x == nil {
				x, err = g.snd.Dial(context.Background(), g.f.Zone)
			}
			if err == nil {
				_, err = x.Send(context.Background(), sender.Envelope{From: "journal@example.net", To: []string{g.box.Address}}, message)
			}
			if err == nil {
				g.mu.Lock()
				g.sent = append(g.sent, sent{i, time.Now(), time.Since(start)})
				g.mu.Unlock()
				break
			}
			if x != nil {
				x.Close()
				x = nil
			}
			var e *sender.Error
			maybe := errors.As(err, &e) && e.MaybeAccepted
			g.mu.Lock()
			g.errors = append(g.errors, err.Error())
			g.maybe[i] = g.maybe[i] || maybe
			g.mu.Unlock()
			if g.ctx.Err() != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		if ends && n%short == 0 {
			x.Close()
			x = nil
		}
	}
}

func (g *good) failures() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, e := range g.errors {
		if i < 5 || i == len(g.errors)-1 {
			g.t.Logf("the sender: %s", e)
		}
	}
	return len(g.errors)
}

// poll is the archive.
func (g *good) poll() {
	for {
		select {
		case <-time.After(2 * time.Second):
		case <-g.ctx.Done():
			return
		}
		g.polls.Add(1)
		if err := g.fetch(0); err != nil {
			g.failed.Add(1)
			g.lastFailure.Store(err.Error())
		}
	}
}

func (g *good) fetch(site int) error {
	n := g.f.Nodes[site]
	_, err := archive.Fetch(context.Background(), archive.Config{Address: n.POP3S, User: g.box.ID, Password: g.box.Password, Timeout: 20 * time.Second,
		TLS: &tls.Config{RootCAs: g.trust, ServerName: n.Host}}, true, func(_ string, msg []byte) error {
		from, i, ok := report.Identify(msg)
		ok = ok && from == seed && bytes.Equal(msg, report.New(seed, i, size))
		g.mu.Lock()
		defer g.mu.Unlock()
		if !ok {
			g.stranger++
		}
		g.fetched[i]++
		return nil
	})
	return err
}

// compare fetches the rest, from both sites, and compares what was fetched with what got
// a 250.
func (g *good) compare() {
	g.t.Helper()
	for site := range g.f.Nodes {
		if err := g.fetch(site); err != nil {
			g.t.Errorf("fetch at last: %v", err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stranger > 0 {
		g.t.Errorf("fetched %d messages that were not sent, or not like this", g.stranger)
	}
	lost, twice, acknowledged := 0, 0, map[int]bool{}
	for _, s := range g.sent {
		acknowledged[s.i] = true
		switch n := g.fetched[s.i]; {
		case n == 0:
			lost++
		case n > 1 && !g.maybe[s.i]:
			twice++
		}
	}
	never := 0
	for i := range g.fetched {
		if !acknowledged[i] && !g.maybe[i] {
			never++
		}
	}
	g.t.Logf("%d messages got a 250, %d were lost, %d fetched twice; %d never got one and were fetched", len(g.sent), lost, twice, never)
	if lost+twice+never > 0 {
		g.t.Error("what was fetched is not what got a 250")
	}
}

// measured is what the sender achieved in a time.
type measured struct {
	from, to time.Time
	sent     []sent
}

func (g *good) measure(d time.Duration) measured {
	m := measured{from: time.Now()}
	time.Sleep(d)
	m.to = time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.sent {
		if !s.at.Before(m.from) && s.at.Before(m.to) {
			m.sent = append(m.sent, s)
		}
	}
	return m
}

func (m measured) rate() float64 { return float64(len(m.sent)) / m.to.Sub(m.from).Seconds() }

// worst is the rate in the worst ten seconds, of those that follow one another.
func (m measured) worst() float64 {
	const window = 10 * time.Second
	n := make([]int, max(1, int(m.to.Sub(m.from)/window)))
	for _, s := range m.sent {
		n[min(len(n)-1, int(s.at.Sub(m.from)/window))]++
	}
	if len(n) == 1 {
		return m.rate()
	}
	return float64(slices.Min(n)) / window.Seconds()
}

func (m measured) delays() string {
	var all []time.Duration
	for _, s := range m.sent {
		all = append(all, s.took)
	}
	if len(all) == 0 {
		return "none"
	}
	slices.Sort(all)
	var out []string
	for _, p := range []int{50, 99, 100} {
		out = append(out, strconv.Itoa(p)+" % within "+all[min(len(all)-1, len(all)*p/100)].Round(time.Millisecond).String())
	}
	return fmt.Sprintf("each acknowledged: %s", strings.Join(out, ", "))
}
