package node

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"msgw/dnsplugin"
	"msgw/internal/admin"
	"msgw/internal/health"
	"msgw/raftstore"
)

// zone keeps the snapshot that the DNS answers from.
type zone struct {
	n    *Node
	look time.Duration // how often it looks whether the view of health has gone stale
	snap atomic.Pointer[snapshot]
}

// snapshot pairs a zone with the verdicts it was made from.
type snapshot struct {
	zone     *dnsplugin.Zone
	verdicts map[string]health.Verdict
	fresh    bool
	hosts    []mailHost // in the order of zone.Hosts
	notes    []string   // settings that are not published as they are, and why
}

// mailHost is a site or an exchange.
type mailHost struct {
	name   string // of its verdict
	node   string // empty: it is no node
	host   string
	weight uint32
}

func newZone(n *Node) *zone {
	z := &zone{n: n, look: 2 * time.Second}
	z.snap.Store(z.build(nil, true, false))
	return z
}

// Zone returns the snapshot; see dnsplugin.Source.
func (z *zone) Zone() *dnsplugin.Zone { return z.snap.Load().zone }

// run renews the snapshot whenever configuration or health change.
func (z *zone) run(ctx context.Context) error {
	faults := ""
	for {
		config, verdict := z.n.store.Changed(), z.n.health.Changed()
		vs, settled, fresh := z.n.health.Verdicts()
		s := z.build(vs, settled, fresh)
		if old := z.snap.Load(); reflect.DeepEqual(s.zone, old.zone) {
			s.zone = old.zone // what answers are kept of it stays
		}
		z.snap.Store(s)
		if err := s.zone.Check(); err != nil && err.Error() != faults {
			faults = err.Error()
			z.n.log.Error("records that cannot be served are left out", "err", err)
		}
		select {
		case <-config:
		case <-verdict:
		case <-time.After(z.look): // a view that went stale
		case <-ctx.Done():
			return nil
		}
	}
}

func (z *zone) build(vs []health.Verdict, settled, fresh bool) *snapshot {
	state := z.n.store.State()
	s := buildZone(state, z.n.serves(), vs, settled, fresh)
	z.n.signZone(s.zone, state.Signing, time.Now())
	return s
}

// buildZone makes the zone of a configuration. serves is what the sites say that they serve,
// as far as it is known; the rest is the view of health.
func buildZone(state *raftstore.State, serves map[string]served, vs []health.Verdict, settled, fresh bool) *snapshot {
	apex := dns.Fqdn(state.Zone.Name)
	s := &snapshot{verdicts: map[string]health.Verdict{}, fresh: fresh,
		zone: &dnsplugin.Zone{Name: apex, Serial: state.Revision, Contact: state.Zone.Contact, Unsettled: fresh && !settled}}
	if state.Zone.MXMode == "rank" {
		s.zone.Mode = dnsplugin.Rank
	}
	for _, v := range vs {
		s.verdicts[v.Name] = v
	}
	for _, node := range state.SortedNodes() {
		if node.Role != raftstore.Site {
			continue
		}
		host := dns.Fqdn(node.Host)
		s.add(mailHost{node.Name, node.Name, node.Host, node.Weight},
			dnsplugin.Host{Name: host, V4: addrs(node.V4), V6: addrs(node.V6), Weight: node.Weight, NameServer: true})
		// Each node answers the challenges for its own host name, and nobody else.
		s.zone.Records = append(s.zone.Records, &dns.NS{
			Hdr: dns.RR_Header{Name: challengeName(state.Zone.Name, node.Name, node.Host), Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 3600}, Ns: host})
	}
	s.addContent(state, current(state, serves))
	return s
}

// add adds a mail host, in the state that its verdict says.
func (s *snapshot) add(m mailHost, h dnsplugin.Host) {
	// Unknown and stale mean configured.
	if s.fresh {
		switch s.verdicts[m.name].State {
		case health.Down:
			h.State = dnsplugin.Down
		case health.Drained:
			h.State = dnsplugin.Drained
		}
	}
	s.zone.Hosts, s.hosts = append(s.zone.Hosts, h), append(s.hosts, m)
}

func addrs(list []string) []netip.Addr {
	var as []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil { // checked before it was replicated
			as = append(as, a)
		}
	}
	return as
}

// mx explains what is answered.
func (s *snapshot) mx() []admin.MX {
	var out []admin.MX
	for i, sh := range s.zone.Shares() {
		m := s.hosts[i]
		v := s.verdicts[m.name]
		reason := v.Reason
		if !s.fresh {
			reason = "health is not known yet: configured"
		}
		out = append(out, admin.MX{Node: m.node, Host: m.host, External: m.node == "", Weight: m.weight, State: sh.State.String(), Class: sh.Class.String(),
			Share: sh.Expected, TTL: sh.TTL, Row: int(v.Row), Reason: reason, Why: sh.Why, Since: v.Since, Observations: v.Observations})
	}
	return out
}

// sample draws one answer.
func (s *snapshot) sample() []dnsplugin.Exchange {
	return s.zone.Draw(rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
}

// listenDNS makes the DNS server and binds its port.
func (n *Node) listenDNS(ctx context.Context) (*dnsplugin.Server, error) {
	rate, err := n.cfg.DNS.rate()
	if err != nil {
		return nil, operatorError(err, "")
	}
	cookies := &cookieSecrets{n: n}
	h, err := dnsplugin.New(dnsplugin.Options{Source: n.zone, Challenges: n.certs, NSID: n.id.Name, CookieSecrets: cookies.get, Rate: rate,
		Self: dns.Fqdn(n.host()), Registerer: n.metrics, Log: n.log})
	if err != nil {
		return nil, err
	}
	s := dnsplugin.NewServer(h, n.cfg.Listen.DNS)
	if err := s.Listen(ctx); err != nil {
		return nil, bindError("listen.dns", n.cfg.Listen.DNS, err)
	}
	return s, nil
}
