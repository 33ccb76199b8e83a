//go:build faults

package faults

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/test/labtest"
)

// exchanges asks a site for the MX records and returns the preferences by name of the site.
func (m *machine) exchanges(t *testing.T) (map[string]uint16, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	q := new(dns.Msg).SetQuestion(zone+".", dns.TypeMX)
	r, _, err := new(dns.Client).ExchangeContext(ctx, q, m.addr+":53")
	if err != nil {
		return nil, err
	}
	out := map[string]uint16{}
	for _, rr := range r.Answer {
		mx, ok := rr.(*dns.MX)
		if !ok {
			return nil, fmt.Errorf("not an MX: %v", rr)
		}
		name, _, _ := strings.Cut(mx.Mx, ".")
		out[name] = mx.Preference
	}
	if len(out) != 2 {
		return nil, fmt.Errorf("%s answers %v: a host is missing", m.name, r.Answer)
	}
	return out, nil
}

// answers waits until a site answers so, and returns after how long.
func (m *machine) answers(t *testing.T, within time.Duration, want map[string]uint16) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		got, err := m.exchanges(t)
		switch {
		case err == nil && maps.Equal(got, want):
			return time.Since(began)
		case time.Since(began) > within:
			out, _ := m.msgw("dns", "--explain", "--dir", m.dir)
			t.Fatalf("%s answers %v, %v after %v, want %v:\n%s", m.name, got, err, within, want, out)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var (
	balanced = map[string]uint16{"msgw1": 10, "msgw2": 10}
	onlyOne  = map[string]uint16{"msgw1": 10, "msgw2": 100}
)

// TestSteering kills a site, lets it fall silent, drains it and changes weights, and sees
// the answers of the other one follow. How fast is measured by .ci/bench.
func TestSteering(t *testing.T) {
	t.Parallel()
	const fast = "[health]\npreset = \"fast\"\n"
	a := newAppliance(t, plan{public: func(*network, int) string { return fast }, witness: fast})
	one, two := a.sites[0], a.sites[1]
	one.answers(t, 30*time.Second, balanced)

	two.kill()
	t.Logf("killed: %v", one.answers(t, 5*time.Second, onlyOne))
	two.start()
	t.Logf("back: %v", one.answers(t, 60*time.Second, balanced))
	two.answers(t, 60*time.Second, balanced)

	// Unplugged: nobody says anything.
	a.net.must("ip", "-n", two.netns, "link", "set", "eth0", "down")
	t.Logf("silent: %v", one.answers(t, 10*time.Second, onlyOne))
	a.net.must("ip", "-n", two.netns, "link", "set", "eth0", "up")
	one.answers(t, 90*time.Second, balanced)
	two.answers(t, 90*time.Second, balanced)

	// What an operator wishes is answered by all sites within 2 s.
	two.must("node", "drain", "msgw2", "--dir", two.dir)
	for _, m := range a.sites {
		t.Logf("drained, %s: %v", m.name, m.answers(t, 2*time.Second, onlyOne))
	}
	two.must("node", "undrain", "msgw2", "--dir", two.dir)
	for _, m := range a.sites {
		m.answers(t, 2*time.Second, balanced)
	}
	one.must("node", "weight", "msgw2", "0", "--dir", one.dir)
	for _, m := range a.sites {
		t.Logf("weight 1:0, %s: %v", m.name, m.answers(t, 2*time.Second, map[string]uint16{"msgw1": 10, "msgw2": 20}))
	}
	a.finish()
}

// TestBlockedEgress runs two sites whose facilities let nobody out to port 25, at 3:1.
// Nothing is demoted for that; a site that dies still is, as far as the peer port tells.
func TestBlockedEgress(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{site: func(_ *testing.T, _ int, m *machine) {
		m.rules("table inet facility {\n chain out {\n  type filter hook output priority 0;\n  oifname \"eth0\" tcp dport 25 drop\n }\n}\n")
	}})
	one, two := a.sites[0], a.sites[1]
	one.must("node", "weight", "msgw1", "3", "--dir", one.dir)
	const warning = "has never answered from here"
	labtest.Within(t, 60*time.Second, "both sites know that the port is blocked", func() error {
		for _, m := range a.sites {
			d, err := m.admin().DNS(t.Context(), true)
			if err != nil {
				return err
			}
			for _, d := range slices.Concat(d.Others, []admin.DNS{d}) {
				for _, x := range d.MX {
					if x.State != "up" || x.Share != map[string]float64{"msgw1": 0.75, "msgw2": 0.25}[x.Node] {
						return fmt.Errorf("%s: %+v", d.Node, x)
					}
					// The witness gets out, and reaches both.
					if x.Node != d.Node && x.Row != 15 {
						return fmt.Errorf("%s: row %d for %s, want 15", d.Node, x.Row, x.Node)
					}
				}
			}
			log, err := os.ReadFile(m.log)
			if err != nil {
				return err
			}
			if n := strings.Count(string(log), warning); n != 1 {
				return fmt.Errorf("%s warned %d times, want once", m.name, n)
			}
		}
		return nil
	})
	tied := 0
	for range 400 {
		got, err := one.exchanges(t)
		if err != nil {
			t.Fatal(err)
		}
		if got["msgw1"] != 10 || got["msgw2"] > 20 {
			t.Fatalf("answers %v", got)
		}
		if got["msgw2"] == 10 {
			tied++
		}
	}
	// Tied in half of the answers, 10 standard deviations either way.
	if tied < 100 || tied > 300 {
		t.Errorf("3:1 is tied in %d of 400 answers", tied)
	}

	a.witness.kill()
	two.kill()
	labtest.Within(t, 30*time.Second, "msgw2 stands last", func() error {
		if got, err := one.exchanges(t); err != nil || got["msgw2"] != 100 {
			return fmt.Errorf("%v, %w", got, err)
		}
		return nil
	})
	two.start()
	a.witness.start()
	a.well(60 * time.Second)
	a.finish()
}
