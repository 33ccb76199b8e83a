package node

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
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
	nodes    []raftstore.Node // in the order of zone.Hosts
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
	apex := dns.Fqdn(state.Zone.Name)
	s := &snapshot{verdicts: map[string]health.Verdict{}, fresh: fresh,
		zone: &dnsplugin.Zone{Name: apex, Serial: state.Revision, Contact: state.Zone.Contact, Unsettled: fresh && !settled}}
	z.n.signZone(s.zone, state.Signing, time.Now())
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
		h := dnsplugin.Host{Name: host, V4: addrs(node.V4), V6: addrs(node.V6), Weight: node.Weight, NameServer: true}
		// Unknown and stale mean configured.
		if fresh {
			switch s.verdicts[node.Name].State {
			case health.Down:
				h.State = dnsplugin.Down
			case health.Drained:
				h.State = dnsplugin.Drained
			}
		}
		s.zone.Hosts = append(s.zone.Hosts, h)
		s.nodes = append(s.nodes, node)
		if strings.HasSuffix(host, "."+apex) {
			// Each host answers the challenges for its own name, and nobody else.
			s.zone.Records = append(s.zone.Records, &dns.NS{
				Hdr: dns.RR_Header{Name: "_acme-challenge." + host, Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 3600}, Ns: host})
		}
	}
	return s
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
		node := s.nodes[i]
		v := s.verdicts[node.Name]
		reason := v.Reason
		if !s.fresh {
			reason = "health is not known yet: configured"
		}
		out = append(out, admin.MX{Node: node.Name, Host: node.Host, Weight: node.Weight, State: sh.State.String(), Class: sh.Class.String(),
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
