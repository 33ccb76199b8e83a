// Package delegation looks at what the parent of a zone serves about it: the delegation
// itself, its DS records, and records that the delegation hides.
//
// A look finds the parent and its servers through a resolver and then asks each of the
// servers itself, since a resolver says what was, not what is. It asks a bounded number of
// questions and ends with its context.
package delegation

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// View is what was seen of a zone from above.
type View struct {
	Parent  string   `json:"parent"` // the zone that delegates it, or would
	Servers []Server `json:"servers"`
	// Hidden are records of the parent at the zone's name and at those of its hosts, which
	// are not seen any more once the zone is delegated. They are looked for until then.
	Hidden []string `json:"hidden,omitempty"`
}

// Server is one server of the parent.
type Server struct {
	Name      string   `json:"name"`
	Address   string   `json:"address"`
	Error     string   `json:"error,omitempty"` // it did not say
	Delegated bool     `json:"delegated"`
	NS        []string `json:"ns,omitempty"`     // names, sorted
	Glue      []string `json:"glue,omitempty"`   // name and address, sorted
	DS        []string `json:"ds,omitempty"`     // tag, algorithm, digest type and digest, sorted
	DSTTL     uint32   `json:"ds_ttl,omitempty"` // seconds
}

// Looker asks.
type Looker struct {
	Resolver string // host:port; empty: that of /etc/resolv.conf
	Port     string // of the parent's servers; empty: 53
}

// Bounds of a look.
const (
	maxServers   = 12 // addresses of the parent's servers
	maxHosts     = 8
	maxAncestors = 16
	maxQuestions = 128
	questionTime = 2 * time.Second
	lookTime     = 8 * time.Second
)

// errTooMany ends a look that would never end.
var errTooMany = fmt.Errorf("more than %d questions", maxQuestions)

// Look looks at zone, and at hosts, the names of its hosts. The error is one of finding
// the parent; a server that does not answer has its own.
func (l Looker) Look(ctx context.Context, zone string, hosts []string) (View, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	k := &look{port: l.Port}
	if k.port == "" {
		k.port = "53"
	}
	var err error
	if k.resolver, err = l.resolver(); err != nil {
		return View{}, err
	}
	zone = dns.CanonicalName(zone)
	parent, names, err := k.parent(ctx, zone)
	if err != nil {
		return View{}, err
	}
	v := View{Parent: strings.TrimSuffix(parent, ".")}
	if parent == "." {
		v.Parent = "."
	}
	if v.Servers, err = k.addresses(ctx, names); err != nil {
		return v, err
	}
	var wg sync.WaitGroup
	for i := range v.Servers {
		wg.Go(func() {
			if err := k.server(ctx, zone, &v.Servers[i]); err != nil {
				v.Servers[i] = Server{Name: v.Servers[i].Name, Address: v.Servers[i].Address, Error: err.Error()}
			}
		})
	}
	wg.Wait()
	for _, s := range v.Servers {
		if s.Error == "" && !s.Delegated {
			v.Hidden, err = k.hidden(ctx, s.Address, zone, hosts)
			break
		}
	}
	return v, err
}

// Ask asks the resolver a question.
func (l Looker) Ask(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	resolver, err := l.resolver()
	if err != nil {
		return nil, err
	}
	return (&look{}).ask(ctx, resolver, name, qtype, true)
}

func (l Looker) resolver() (string, error) {
	if l.Resolver != "" {
		return l.Resolver, nil
	}
	c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return "", fmt.Errorf("no resolver is known: %w", err)
	}
	if len(c.Servers) == 0 {
		return "", errors.New("/etc/resolv.conf names no resolver")
	}
	return net.JoinHostPort(c.Servers[0], c.Port), nil
}

// look is one look.
type look struct {
	resolver, port string

	mu    sync.Mutex
	asked int
}

// ask asks one question, again if no answer comes, and by TCP if it does not fit.
func (k *look) ask(ctx context.Context, server, name string, qtype uint16, recursive bool) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, qtype)
	q.RecursionDesired = recursive
	q.SetEdns0(1232, false)
	m, err := k.send(ctx, "udp", server, q)
	if err != nil && ctx.Err() == nil {
		m, err = k.send(ctx, "udp", server, q)
	}
	if err == nil && m.Truncated {
		m, err = k.send(ctx, "tcp", server, q)
	}
	if err != nil {
		return nil, fmt.Errorf("%s does not say %s %s: %w", server, name, dns.TypeToString[qtype], err)
	}
	return m, nil
}

func (k *look) send(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
	k.mu.Lock()
	k.asked++
	tooMany := k.asked > maxQuestions
	k.mu.Unlock()
	if tooMany {
		return nil, errTooMany
	}
	m, _, err := (&dns.Client{Net: network, Timeout: questionTime}).ExchangeContext(ctx, q, server)
	return m, err
}

// parent finds the closest zone above zone, and the names of its servers.
func (k *look) parent(ctx context.Context, zone string) (string, []string, error) {
	name := zone
	for range maxAncestors {
		off, end := dns.NextLabel(name, 0)
		if name = name[off:]; end {
			name = "."
		}
		m, err := k.ask(ctx, k.resolver, name, dns.TypeNS, true)
		switch {
		case err != nil:
			return "", nil, err
		case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
			return "", nil, fmt.Errorf("the resolver %s answers %s for %s NS", k.resolver, dns.RcodeToString[m.Rcode], name)
		}
		var names []string
		for _, rr := range m.Answer {
			if ns, ok := rr.(*dns.NS); ok && dns.CanonicalName(ns.Hdr.Name) == name {
				names = append(names, dns.CanonicalName(ns.Ns))
			}
		}
		if len(names) > 0 {
			slices.Sort(names)
			return name, names, nil
		}
		if name == "." {
			break
		}
	}
	return "", nil, fmt.Errorf("the resolver %s names no servers of a zone above %s", k.resolver, zone)
}

// addresses finds the addresses of servers. Their IPv6 addresses are only asked where they
// have no others: this machine may have none itself.
func (k *look) addresses(ctx context.Context, names []string) ([]Server, error) {
	var servers []Server
	for _, name := range names {
		found := false
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if found {
				break
			}
			m, err := k.ask(ctx, k.resolver, name, qtype, true)
			if err != nil {
				return servers, err
			}
			for _, rr := range m.Answer {
				addr := addressOf(rr)
				if addr == "" || len(servers) == maxServers {
					continue
				}
				servers, found = append(servers, Server{Name: strings.TrimSuffix(name, "."), Address: net.JoinHostPort(addr, k.port)}), true
			}
		}
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("the resolver %s knows no address of %s", k.resolver, strings.Join(names, ", "))
	}
	return servers, nil
}

func addressOf(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.A:
		return rr.A.String()
	case *dns.AAAA:
		return rr.AAAA.String()
	}
	return ""
}

// server asks one server of the parent for the delegation and its DS.
func (k *look) server(ctx context.Context, zone string, s *Server) error {
	m, err := k.ask(ctx, s.Address, zone, dns.TypeNS, false)
	if err != nil {
		return err
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return fmt.Errorf("it answers %s", dns.RcodeToString[m.Rcode])
	}
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		if ns, ok := rr.(*dns.NS); ok && dns.CanonicalName(ns.Hdr.Name) == zone {
			s.NS = append(s.NS, dns.CanonicalName(ns.Ns))
		}
	}
	if s.Delegated = len(s.NS) > 0; !s.Delegated && !m.Authoritative {
		return errors.New("it has no authority for the parent zone")
	}
	for _, rr := range m.Extra {
		if a := addressOf(rr); a != "" && dns.IsSubDomain(zone, dns.CanonicalName(rr.Header().Name)) {
			s.Glue = append(s.Glue, dns.CanonicalName(rr.Header().Name)+" "+a)
		}
	}
	if m, err = k.ask(ctx, s.Address, zone, dns.TypeDS, false); err != nil {
		return err
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return fmt.Errorf("it answers %s for DS", dns.RcodeToString[m.Rcode])
	}
	for _, rr := range m.Answer {
		if ds, ok := rr.(*dns.DS); ok {
			s.DS = append(s.DS, DS(ds))
			s.DSTTL = max(s.DSTTL, ds.Hdr.Ttl)
		}
	}
	for _, list := range []*[]string{&s.NS, &s.Glue, &s.DS} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return nil
}

// DS writes the data of a DS record as Server has it.
func DS(ds *dns.DS) string {
	return fmt.Sprintf("%d %d %d %s", ds.KeyTag, ds.Algorithm, ds.DigestType, strings.ToUpper(ds.Digest))
}

// hidden looks for records of the parent that a delegation of zone would hide.
func (k *look) hidden(ctx context.Context, server, zone string, hosts []string) ([]string, error) {
	var found []string
	names := append([]string{zone}, hosts[:min(len(hosts), maxHosts)]...)
	for _, name := range names {
		name = dns.CanonicalName(name)
		types := []uint16{dns.TypeA, dns.TypeAAAA}
		if name == zone {
			types = append(types, dns.TypeMX, dns.TypeTXT)
		}
		if !dns.IsSubDomain(zone, name) {
			continue
		}
		for _, qtype := range types {
			m, err := k.ask(ctx, server, name, qtype, false)
			if err != nil {
				return found, err
			}
			for _, rr := range m.Answer {
				if h := rr.Header(); dns.CanonicalName(h.Name) == name && h.Rrtype != dns.TypeRRSIG {
					if text := strings.ReplaceAll(rr.String(), "\t", " "); !slices.Contains(found, text) {
						found = append(found, text)
					}
				}
			}
		}
	}
	return found, nil
}
