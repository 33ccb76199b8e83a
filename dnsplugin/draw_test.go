package dnsplugin

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// lab makes hosts a, b, c.. from "weight state" each, all with one IPv4 address.
func lab(specs ...string) []Host {
	var hosts []Host
	for i, s := range specs {
		h := Host{Name: string(rune('a'+i)) + ".example.org.", V4: addrs(fmt.Sprintf("192.0.2.%d", i+1))}
		var state string
		fmt.Sscan(s, &h.Weight, &state)
		h.State = map[string]State{"": Up, "drained": Drained, "down": Down}[state]
		hosts = append(hosts, h)
	}
	return hosts
}

// dual gives the hosts an IPv6 address each.
func dual(hosts []Host, which ...int) []Host {
	for _, i := range which {
		hosts[i].V6 = addrs("2001:db8::1")
	}
	return hosts
}

// outcomes draws many times and lists the different answers, hosts by name, as
// "a=10 b=20".
func outcomes(z *Zone) []string {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	for range 2000 {
		x := z.Draw(r)
		slices.SortFunc(x, func(a, b Exchange) int { return cmp.Compare(a.Host, b.Host) })
		var parts []string
		for _, e := range x {
			parts = append(parts, fmt.Sprintf("%s=%d", strings.TrimSuffix(e.Host, ".example.org."), e.Preference))
		}
		seen[strings.Join(parts, " ")] = true
	}
	var list []string
	for s := range seen {
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

func TestDrawPreferences(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		mode  Mode
		hosts []Host
		want  []string
	}{
		{"equal weights balance", Tier, lab("1", "1"), []string{"a=10 b=10"}},
		{"equal in scale", Tier, lab("4294967295", "4294967295", "4294967295"), []string{"a=10 b=10 c=10"}},
		{"1:0 is primary and backup", Tier, lab("1", "0"), []string{"a=10 b=20"}},
		{"3:1 mixes both", Tier, lab("3", "1"), []string{"a=10 b=10", "a=10 b=20"}},
		{"order in the zone does not matter", Tier, lab("1", "3"), []string{"a=10 b=10", "a=20 b=10"}},
		{"5:3:2", Tier, lab("5", "3", "2"), []string{"a=10 b=10 c=10", "a=10 b=10 c=20", "a=10 b=20 c=20"}},
		{"weight 0 never on top", Tier, lab("2", "1", "0"), []string{"a=10 b=10 c=20", "a=10 b=20 c=20"}},
		{"all 0 are equal", Tier, lab("0", "0"), []string{"a=10 b=10"}},
		{"one down", Tier, lab("1 down", "1"), []string{"a=100 b=10"}},
		{"one drained", Tier, lab("1 drained", "1"), []string{"a=100 b=10"}},
		{"primary down, backup of weight 0", Tier, lab("1 down", "0"), []string{"a=100 b=10"}},
		{"drained serve if none is up", Tier, lab("1 drained", "1 down"), []string{"a=10 b=100"}},
		{"all drained", Tier, lab("1 drained", "1 drained"), []string{"a=10 b=10"}},
		{"all down: as configured", Tier, lab("1 down", "0 down"), []string{"a=10 b=20"}},
		{"unknown states: as configured", Tier, []Host{{Name: "a.example.org.", State: 9, V4: addrs("192.0.2.1")}, {Name: "b.example.org.", State: 9, V4: addrs("192.0.2.2")}}, []string{"a=10 b=10"}},
		{"two demoted", Tier, lab("1 down", "1", "1 drained"), []string{"a=100 b=10 c=100"}},
		{"families differ: never tied", Tier, dual(lab("1", "1"), 0), []string{"a=10 b=11", "a=11 b=10"}},
		{"same families: tied", Tier, dual(lab("1", "1"), 0, 1), []string{"a=10 b=10"}},
		{"families differ below the top", Tier, dual(lab("1", "0", "0"), 1), []string{"a=10 b=20 c=21", "a=10 b=21 c=20"}},
		{"families differ among the demoted", Tier, dual(lab("1", "1 down", "1 down"), 1), []string{"a=10 b=100 c=101", "a=10 b=101 c=100"}},
		{"two addresses hold two tickets", Tier, []Host{{Name: "a.example.org.", V4: addrs("192.0.2.1", "192.0.2.3")}, {Name: "b.example.org.", V4: addrs("192.0.2.2")}}, []string{"a=10 b=11", "a=11 b=10"}},
		{"unknown addresses are like no others", Tier, []Host{{Name: "a.example.org."}, {Name: "b.example.org."}}, []string{"a=10 b=11", "a=11 b=10"}},
		{"rank", Rank, lab("1", "1"), []string{"a=10 b=20", "a=20 b=10"}},
		{"rank, weight 0 last", Rank, lab("0", "1", "0"), []string{"a=20 b=10 c=30", "a=30 b=10 c=20"}},
		{"rank, one down", Rank, lab("1 down", "1"), []string{"a=100 b=10"}},
		{"a repeated name counts once", Tier, append(lab("1"), Host{Name: "A.example.ORG", Weight: 5}), []string{"a=10"}},
		{"no hosts", Tier, nil, []string{""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := outcomes(&Zone{Mode: tc.mode, Hosts: tc.hosts}); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// Ranks past the ninth close up, to stay ahead of the demoted.
func TestRankOfMany(t *testing.T) {
	t.Parallel()
	var specs []string
	for range 20 {
		specs = append(specs, "1")
	}
	z := &Zone{Mode: Rank, Hosts: lab(append(specs, "1 down")...)}
	var got []uint16
	for _, e := range z.Draw(rand.New(rand.NewPCG(1, 2))) {
		got = append(got, e.Preference)
	}
	if want := []uint16{10, 20, 30, 40, 50, 60, 70, 80, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 99, 99, 100}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// The share of answers in which a host is first in wire order, and the share of
// mail it gets from senders that randomise equals, are both its weight. Draws that
// follow each other are independent.
func TestDrawShares(t *testing.T) {
	t.Parallel()
	const n = 40000
	quantile := map[int]float64{1: 10.83, 2: 13.82} // chi-square at 0.999, by degrees of freedom
	for _, hosts := range [][]Host{lab("1", "1"), lab("3", "1"), lab("5", "3", "2"), lab("1", "0"), lab("2", "5", "3"),
		dual(lab("3", "1"), 1), dual(lab("5", "3", "2"), 2)} {
		for _, mode := range []Mode{Tier, Rank} {
			z := &Zone{Mode: mode, Hosts: hosts}
			r := rand.New(rand.NewPCG(20, 26))
			first, shared, again := map[string]float64{}, map[string]float64{}, 0
			last := ""
			p := newPlan(z.Mode, z.hosts()) // one for all draws, as answers use it
			for range n {
				x := p.draw(r)
				first[x[0].Host]++
				if x[0].Host == last {
					again++
				}
				last = x[0].Host
				k := 1
				for k < len(x) && x[k].Preference == x[0].Preference {
					k++
				}
				for _, e := range x[:k] {
					shared[e.Host] += 1 / float64(k)
				}
			}
			var name string
			var chiFirst, chiShared, same float64
			df := -1
			for _, s := range z.Shares() {
				name += fmt.Sprintf(" %.2f", s.Expected)
				want := s.Expected * n
				same += s.Expected * s.Expected
				if want == 0 {
					if first[s.Host] != 0 || shared[s.Host] != 0 {
						t.Errorf("mode %d%s: %s has a share", mode, name, s.Host)
					}
					continue
				}
				df++
				chiFirst += (first[s.Host] - want) * (first[s.Host] - want) / want
				chiShared += (shared[s.Host] - want) * (shared[s.Host] - want) / want
			}
			// Standard deviations of the number of repetitions from the expected one.
			off := 0.0
			if same < 1 {
				off = math.Abs(float64(again)-n*same) / math.Sqrt(n*same*(1-same))
			}
			t.Logf("mode %d%s: chi2 first %.2f, shared %.2f, repetitions %.2f sd off", mode, name, chiFirst, chiShared, off)
			if df > 0 && (chiFirst > quantile[df] || chiShared > quantile[df] || off > 3.3) {
				t.Errorf("mode %d%s: the shares are not the weights", mode, name)
			}
		}
	}
}

// Whatever the zone: every host once, preferences never fall, demoted ones last,
// shares sum up to 1.
func TestDrawNeverLosesAHost(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3000 {
		z := &Zone{Mode: Mode(r.IntN(2))}
		for i := range 1 + r.IntN(24) {
			h := Host{Name: fmt.Sprintf("h%d.example.org.", i), Weight: r.Uint32N(4), State: State(r.IntN(3))}
			if r.IntN(8) == 0 {
				h.Weight = r.Uint32()
			}
			h.V4, h.V6 = addrs("192.0.2.1", "192.0.2.2")[:r.IntN(3)], addrs("2001:db8::1")[:r.IntN(2)]
			z.Hosts = append(z.Hosts, h)
		}
		shares := z.Shares()
		sum := 0.0
		class := map[string]Class{}
		for i, s := range shares {
			sum += s.Expected
			class[s.Host] = s.Class
			if s.Host != z.Hosts[i].Name || s.TTL != 60 || s.Why == "" || (s.Expected > 0) != (s.Class == Preferred) {
				t.Fatalf("%+v of %+v", s, z)
			}
		}
		if math.Abs(sum-1) > 1e-9 {
			t.Fatalf("shares sum up to %v in %+v", sum, z)
		}
		x := z.Draw(r)
		if len(x) != len(z.Hosts) || class[x[0].Host] != Preferred {
			t.Fatalf("%v from %+v", x, z)
		}
		for i, e := range x {
			if i > 0 && e.Preference < x[i-1].Preference || (class[e.Host] == Demoted) != (e.Preference >= 100) {
				t.Fatalf("%v from %+v", x, z)
			}
			if z.Mode == Rank && i > 0 && e.Preference == x[i-1].Preference && e.Preference < 99 {
				t.Fatalf("tie in %v from %+v", x, z)
			}
			class[e.Host] = -1 // not again
		}
	}
}

func TestShares(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		hosts []Host
		want  string
	}{
		{lab("3", "1"), "a up preferred 0.75 (up, weight 3 of 4); b up preferred 0.25 (up, weight 1 of 4)"},
		{lab("1", "0"), "a up preferred 1 (up, weight 1 of 1); b up fallback 0 (up, weight 0: only after the others)"},
		{lab("0", "0"), "a up preferred 0.5 (up, weight 0 like every usable host: weight 1 of 2); b up preferred 0.5 (up, weight 0 like every usable host: weight 1 of 2)"},
		{lab("1", "1 down"), "a up preferred 1 (up, weight 1 of 1); b down demoted 0 (down: behind every usable host)"},
		{lab("1 drained", "1 down"), "a drained preferred 1 (drained, but no host is up); b down demoted 0 (down: behind every usable host)"},
		{lab("1 down", "3 down"), "a down preferred 0.25 (no host is up or drained: all are answered as configured); b down preferred 0.75 (no host is up or drained: all are answered as configured)"},
	} {
		var got []string
		for _, s := range (&Zone{Hosts: tc.hosts}).Shares() {
			got = append(got, fmt.Sprintf("%s %s %s %v (%s)", s.Host[:1], s.State, s.Class, s.Expected, s.Why))
		}
		if g := strings.Join(got, "; "); g != tc.want {
			t.Errorf("got  %s\nwant %s", g, tc.want)
		}
	}
	if s := (&Zone{Unsettled: true, Hosts: lab("1")}).Shares(); s[0].TTL != 30 {
		t.Errorf("unsettled TTL %d", s[0].TTL)
	}
}
