package dnsplugin

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/miekg/dns"
)

// The lowest preference of each group of hosts (RFC 5321 section 5.1: the lowest
// is tried first).
const (
	prefTop     = 10
	prefOther   = 20
	prefDemoted = 100
	rankStep    = 10
)

// Exchange is one MX record of a drawn answer.
type Exchange struct {
	Host       string
	Preference uint16
}

// Class says where a host can stand in an answer.
type Class int

const (
	Preferred Class = iota // first in proportion to its weight
	Fallback               // usable, but never first: its weight is 0
	Demoted                // behind every usable host
)

func (c Class) String() string {
	switch c {
	case Preferred:
		return "preferred"
	case Fallback:
		return "fallback"
	case Demoted:
		return "demoted"
	}
	return fmt.Sprintf("class %d", int(c))
}

// Share explains what the answers say about one host.
type Share struct {
	Host  string
	State State
	Class Class
	// Expected is the share of answers, 0 to 1, that make senders try this host
	// first, ties shared equally: weight by sum of weights, computed and not sampled.
	Expected float64
	TTL      uint32 // of the MX record in seconds
	Why      string // the reason for Class, to be read by people
}

// Draw draws one MX answer in wire order: preferences never fall. It is what a
// query gets. Every host of the zone is in it once.
func (z *Zone) Draw(r *rand.Rand) []Exchange { return newPlan(z.Mode, z.hosts()).draw(r) }

// Shares explains the answers without drawing one, in the order of Hosts.
func (z *Zone) Shares() []Share {
	p := newPlan(z.Mode, z.hosts())
	shares := make([]Share, len(p.hosts))
	for i, h := range p.hosts {
		shares[i] = Share{Host: h.Name, State: h.State, Class: Demoted, TTL: z.TTL(),
			Why: fmt.Sprintf("%s: behind every usable host", h.State)}
	}
	for n, i := range p.usable {
		s := &shares[i]
		if s.Class = Preferred; p.weights[n] == 0 {
			s.Class = Fallback
		}
		s.Expected = float64(p.weights[n]) / float64(p.sum)
		switch {
		case s.Class == Fallback:
			s.Why = fmt.Sprintf("%s, weight 0: only after the others", s.State)
		case p.needs == Down:
			s.Why = "no host is up or drained: all are answered as configured"
		case p.needs == Drained:
			s.Why = "drained, but no host is up"
		case p.hosts[i].Weight == 0:
			s.Why = fmt.Sprintf("up, weight 0 like every usable host: weight 1 of %d", p.sum)
		default:
			s.Why = fmt.Sprintf("up, weight %d of %d", p.weights[n], p.sum)
		}
	}
	return shares
}

// hosts gives the hosts that can be written as MX records, with names in canonical
// form and each once: senders drop a second MX of one name, so it would carry no
// share. No state is worse than Down.
func (z *Zone) hosts() []Host {
	hosts := make([]Host, 0, len(z.Hosts))
	for _, h := range z.Hosts {
		h.Name, h.State = dns.CanonicalName(h.Name), min(h.State, Down)
		if validName(h.Name) && !slices.ContainsFunc(hosts, func(o Host) bool { return o.Name == h.Name }) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// plan is all about the hosts that does not change from one draw to the next.
// The indexes are into hosts.
type plan struct {
	mode    Mode
	hosts   []Host
	needs   State    // the worst state that counts as usable
	usable  []int    // heaviest first
	weights []uint64 // of usable; never all 0
	sum     uint64   // of weights
	demoted []int
}

func newPlan(mode Mode, hosts []Host) *plan {
	p := &plan{mode: mode, hosts: hosts, needs: Down}
	for _, h := range hosts {
		p.needs = min(p.needs, h.State) // Up < Drained < Down
	}
	for i, h := range hosts {
		if h.State > p.needs {
			p.demoted = append(p.demoted, i)
			continue
		}
		p.usable = append(p.usable, i)
		p.sum += uint64(h.Weight)
	}
	weight := func(i int) uint64 {
		if p.sum == 0 {
			return 1
		}
		return uint64(hosts[i].Weight)
	}
	slices.SortStableFunc(p.usable, func(a, b int) int { return cmp.Compare(weight(b), weight(a)) })
	for _, i := range p.usable {
		p.weights = append(p.weights, weight(i))
	}
	if p.sum == 0 {
		p.sum = uint64(len(p.usable))
	}
	return p
}

// placed is one MX record of a drawn answer: a host of the plan, and its preference.
type placed struct{ host, preference uint16 }

func (p *plan) draw(r *rand.Rand) []Exchange {
	var drawn []Exchange
	for _, x := range p.place(make([]placed, 0, len(p.hosts)), r) {
		drawn = append(drawn, p.exchange(x))
	}
	return drawn
}

func (p *plan) exchange(x placed) Exchange { return Exchange{p.hosts[x.host].Name, x.preference} }

// place draws into out, which is empty.
func (p *plan) place(out []placed, r *rand.Rand) []placed {
	if len(p.usable) == 0 { // there are no hosts at all
		return out
	}
	if p.mode == Rank {
		out = p.rank(out, r)
	} else {
		k := p.tier(r)
		out = p.tie(out, r, prefTop, p.usable[:k])
		out = p.tie(out, r, prefOther, p.usable[k:])
	}
	return p.tie(out, r, prefDemoted, p.demoted)
}

// tier draws how many of the heaviest hosts are tied at the top. With weights
// w1 >= w2 >= .. >= wn and w(n+1) = 0, k is drawn with probability
// k*(wk - w(k+1))/sum. Host i is tied with k-1 others for every k >= i, so its
// share is the sum over k >= i of (wk - w(k+1))/sum, which is wi/sum. A host of
// weight 0 adds nothing to k, hence is never in the top tier.
func (p *plan) tier(r *rand.Rand) int {
	x := r.Uint64N(p.sum)
	for k := 1; k < len(p.usable); k++ {
		step := uint64(k) * (p.weights[k-1] - p.weights[k])
		if x < step {
			return k
		}
		x -= step
	}
	return len(p.usable)
}

// rank appends the usable hosts in an order drawn by weight without replacement;
// those of weight 0 come last, in any order. A host's chance to be first is its share.
func (p *plan) rank(out []placed, r *rand.Rand) []placed {
	hosts, weights, sum := slices.Clone(p.usable), slices.Clone(p.weights), p.sum
	for n := 0; len(hosts) > 0; n++ {
		i := 0
		if sum > 0 {
			for x := r.Uint64N(sum); x >= weights[i]; i++ {
				x -= weights[i]
			}
		} else {
			i = r.IntN(len(hosts))
		}
		// Past the ninth host the steps shrink, to stay ahead of the demoted.
		pref := min(prefTop+n*rankStep, prefDemoted-rankStep+max(0, n-8), prefDemoted-1)
		out = append(out, placed{uint16(hosts[i]), uint16(pref)})
		sum -= weights[i]
		hosts, weights = slices.Delete(hosts, i, i+1), slices.Delete(weights, i, i+1)
	}
	return out
}

// tie appends hosts at one preference, in shuffled order, so that a sender that
// takes the first record finds the same shares as one that randomises equals.
//
// Hosts are only tied if they have as many addresses of each family. Senders pool
// or sort the addresses of equal MX hosts: Postfix shuffles addresses, so that a
// host with two holds two tickets, and Exim tries all IPv6 addresses first. Where
// they differ, the shuffled order is written into the preferences instead.
func (p *plan) tie(out []placed, r *rand.Rand, pref int, hosts []int) []placed {
	step := 0
	for _, i := range hosts {
		if !sameFamilies(&p.hosts[i], &p.hosts[hosts[0]]) {
			step = 1
		}
	}
	first := len(out)
	for n, i := range hosts {
		out = append(out, placed{host: uint16(i)})
		// Each is put at any of the places so far (Fisher and Yates, inside out).
		at := first + int(r.Uint64N(uint64(n+1)))
		out[first+n], out[at] = out[at], out[first+n]
	}
	for n := range out[first:] {
		// A tier holds its ten preferences, whatever the number of hosts.
		out[first+n].preference = uint16(pref + min(n*step, prefOther-prefTop-1))
	}
	return out
}

// sameFamilies reports whether equal preference means equal chances. The addresses
// of a host outside the zone may be unknown here; such a host is like no other.
func sameFamilies(a, b *Host) bool {
	if a.Name == b.Name {
		return true
	}
	return len(a.V4) == len(b.V4) && len(a.V6) == len(b.V6) && len(a.V4)+len(a.V6) > 0
}

// process is the random source of answers. It has no state of its own, hence a
// rand.Rand on it may be shared by goroutines. A drawn answer is independent of
// those before it: a counter would beat against the period of a resolver's cache.
type process struct{}

func (process) Uint64() uint64 { return rand.Uint64() }
