//go:build faults

package faults

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLinkSilent cuts the line between the sites so that nothing comes through and nobody
// is told, with the times that an appliance has as it is delivered.
func TestLinkSilent(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{})
	for range rounds(t, 1) {
		a.flow(60, 60)
		began := a.cut(drop, 0, 1)
		for site, m := range a.sites {
			d := a.becomes(site, 25*time.Second, "DEGRADED").Sub(began)
			t.Logf("%s: DEGRADED %.2f s after the line went silent (default: 15 s after the last sign)", m.name, d.Seconds())
			if d > 17*time.Second || d < 10*time.Second {
				t.Errorf("%s: that is not 15 s", m.name)
			}
		}
		a.singles()
		a.heals()
	}
	a.finish()
}

// TestLinkRefused lets a firewall refuse everything between the sites, and say so.
func TestLinkRefused(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{})
	for range rounds(t, 1) {
		a.flow(60, 60)
		began := a.cut(reject, 0, 1)
		for site, m := range a.sites {
			d := a.becomes(site, 10*time.Second, "DEGRADED").Sub(began)
			t.Logf("%s: DEGRADED %.2f s after the line was refused (default: 2 s after the link broke)", m.name, d.Seconds())
			if d > 4*time.Second || d < 1800*time.Millisecond {
				t.Errorf("%s: that is not 2 s", m.name)
			}
		}
		a.singles()
		a.heals()
	}
	a.finish()
}

// singles sees messages taken with one copy, which the sites know of.
func (a *appliance) singles() {
	a.t.Helper()
	a.flow(40, 0)
	for _, x := range a.archive {
		x.pause()
	}
	a.flow(20, 0)
	for _, m := range a.sites {
		s := m.mustStatus()
		if s.Copies.Single == 0 || len(s.Trouble) == 0 {
			a.t.Errorf("%s took mail without the other site, and says %+v, trouble %q", m.name, *s.Copies, s.Trouble)
		}
		// Without a link the list cannot be complete, and the command says how many are known.
		if out, err := m.msgw("journal", "single-copy", "--json", "--dir", m.dir); out == "" && (err == nil || !strings.Contains(err.Error(), "known to have one copy")) {
			a.t.Errorf("%s counts %d messages with one copy, but: %v", m.name, s.Copies.Single, err)
		}
	}
	for _, x := range a.archive {
		x.open()
	}
}

// heals mends the line and sees everything get its second copy, under load.
func (a *appliance) heals() {
	a.t.Helper()
	began := time.Now()
	a.repair(0, 1)
	for site, m := range a.sites {
		since := a.becomes(site, 60*time.Second, "SYNC")
		a.t.Logf("%s: SYNC %.2f s after the line was mended", m.name, max(0, since.Sub(began)).Seconds()) // 0: it never was anything else
	}
	a.flow(20, 20)
}

// TestLinkOneWay drops what goes one way only, then what goes the other way.
func TestLinkOneWay(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times})
	for range rounds(t, 1) {
		for to := range a.sites {
			for _, how := range []string{drop, reject} {
				a.flow(30, 30)
				began := a.cut(how, to)
				for site, m := range a.sites {
					since := a.becomes(site, 15*time.Second, "DEGRADED")
					t.Logf("%s: DEGRADED %.2f s after what goes to %s met %s", m.name, since.Sub(began).Seconds(), a.sites[to].name, how)
				}
				a.flow(30, 0)
				a.heals()
			}
		}
	}
	a.finish()
}

// TestLinkBriefly cuts the line again and again for shorter than it takes to count as
// gone: senders wait, and everything has two copies.
func TestLinkBriefly(t *testing.T) {
	t.Parallel()
	// A cut of a second and a quarter lasts longer where the machine is busy.
	a := newAppliance(t, plan{times: append(slices.Clone(times), "--refused", "5s", "--silent", "5s")})
	for i := range rounds(t, 6) {
		a.flow(10, 0)
		a.cut([]string{drop, reject}[i%2], 0, 1)
		time.Sleep(time.Duration(200+i%5*250) * time.Millisecond)
		a.repair(0, 1)
	}
	a.finish()
	for site := range a.sites {
		if a.watch.saw(site, "DEGRADED") {
			t.Errorf("%s gave the other site up", a.sites[site].name)
		}
	}
}

// TestLinkSplit cuts the line for so long that each site hands the other one's messages
// over as well, while mail comes in and is fetched at both.
func TestLinkSplit(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: append(slices.Clone(times), "--adopt", "8s")})
	for range rounds(t, 1) {
		for _, x := range a.archive {
			x.pause()
		}
		a.flow(60, 0)
		began := a.cut(drop, 0, 1)
		for site, m := range a.sites {
			t.Logf("%s: adopted %.1f s after the line went silent (8 s; the witness reaches both): %s", m.name, a.adopts(site).Sub(began).Seconds(), m.mustStatus().Copies.AdoptedWhy)
		}
		a.archive[0].open() // fetches what both hold
		a.flow(30, 60)
		a.archive[1].open()
		a.flow(30, 0)
		a.heals()
		a.parted()
	}
	a.finish()
}

// through makes the sites reach each other through proxies.
func through(t *testing.T, delay time.Duration) (plan, *[2]*proxy) {
	var proxies [2]*proxy
	return plan{times: times, public: func(w *network, site int) string {
		proxies[site] = newProxy(t, w.addr(254), fmt.Sprintf("%s:8451", w.addr(site+1)), delay)
		return fmt.Sprintf("peer = %q\n", proxies[site].addr)
	}}, &proxies
}

// TestLinkDelay20 and TestLinkDelay200 put so many milliseconds between the sites, each way.
func TestLinkDelay20(t *testing.T)  { delayed(t, 20*time.Millisecond) }
func TestLinkDelay200(t *testing.T) { delayed(t, 200*time.Millisecond) }

func delayed(t *testing.T, d time.Duration) {
	t.Parallel()
	p, proxies := through(t, d)
	a := newAppliance(t, p)
	for range rounds(t, 1) {
		began := time.Now()
		before, _ := a.led.counts()
		a.flow(80, 80)
		after, _ := a.led.counts()
		t.Logf("%v each way: %.1f messages a second from %d senders that wait 25 ms in between", d, float64(after-before)/time.Since(began).Seconds(), senders)
		for site := range a.sites {
			if s := a.sites[site].mustStatus().Copies; s.State != "SYNC" && s.State != "CATCHUP" {
				t.Errorf("%s is %s over a line that is only long", a.sites[site].name, s.State)
			}
		}
		// With a large message under way, and deletions, the connections are cut.
		for _, x := range proxies {
			x.sever()
		}
		a.heals()
	}
	a.finish()
}

// TestLinkBad stalls the line, lets it trickle, and breaks connections in mid-stream.
func TestLinkBad(t *testing.T) {
	t.Parallel()
	p, proxies := through(t, 0)
	a := newAppliance(t, p)
	each := func(f func(*proxy)) {
		for _, x := range proxies {
			f(x)
		}
	}
	for i := range rounds(t, 1) {
		a.flow(30, 30)
		each((*proxy).stall)
		for site := range a.sites {
			a.becomes(site, 20*time.Second, "DEGRADED")
		}
		a.flow(20, 0)
		each((*proxy).flow)
		a.heals()

		proxies[i%2].stall() // one way only
		a.becomes(1-i%2, 20*time.Second, "DEGRADED")
		a.flow(20, 0)
		each((*proxy).flow)
		a.heals()

		each(func(x *proxy) { x.breakAfter(3_000_000) })
		a.flow(120, 0)
		each((*proxy).flow)
		a.heals()

		each(func(x *proxy) { x.trickle(2000) })
		time.Sleep(6 * time.Second)
		each((*proxy).flow)
		a.heals()
	}
	if n := proxies[0].broken() + proxies[1].broken(); n < 3 {
		t.Errorf("the proxies broke %d connections only", n)
	}
	a.finish()
}
