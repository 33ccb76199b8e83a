package sender

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// maxAddresses bounds how many addresses one message is tried at.
const maxAddresses = 10

// target is one place to try.
type target struct {
	host       string // without the final dot
	preference uint16
	addr       netip.AddrPort
}

// targets yields the addresses of domain's MX hosts in the order in which to try
// them, and in between what could not be resolved. It yields at least once.
func (s *Sender) targets(ctx context.Context, domain string) iter.Seq2[target, *Error] {
	return func(yield func(target, *Error) bool) {
		hosts, err := s.exchangers(ctx, domain)
		if err != nil {
			yield(target{}, err)
			return
		}
		tried := 0
		for _, t := range hosts {
			addrs, err := s.addresses(ctx, t.host)
			if err != nil && !yield(t, err) {
				return
			}
			for _, a := range addrs {
				if tried++; tried > maxAddresses {
					return
				}
				t.addr = s.cfg.Address(a)
				if !yield(t, nil) {
					return
				}
			}
		}
	}
}

// exchangers returns the MX hosts of domain: lowest preference first, equal ones
// shuffled (RFC 5321 section 5.1). A domain without MX gets no mail here, its own
// address notwithstanding.
func (s *Sender) exchangers(ctx context.Context, domain string) ([]target, *Error) {
	fail := func(err error) *Error {
		return &Error{Stage: "MX " + domain, Err: err, Temporary: !errors.Is(err, ErrNoSuchName) && !errors.Is(err, ErrNoMX)}
	}
	rrs, err := s.lookup(ctx, domain, dns.TypeMX)
	if err != nil {
		return nil, fail(err)
	}
	var hosts []target
	for _, rr := range rrs {
		// A host "." says that the domain takes no mail (RFC 7505).
		if mx, ok := rr.(*dns.MX); ok && mx.Mx != "." {
			hosts = append(hosts, target{host: strings.TrimSuffix(mx.Mx, "."), preference: mx.Preference})
		}
	}
	if len(hosts) == 0 {
		return nil, fail(ErrNoMX)
	}
	s.cfg.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	slices.SortStableFunc(hosts, func(a, b target) int { return cmp.Compare(a.preference, b.preference) })
	return hosts, nil
}

// addresses returns the addresses of host, both families shuffled together.
func (s *Sender) addresses(ctx context.Context, host string) ([]netip.Addr, *Error) {
	var addrs []netip.Addr
	var errs []error
	temporary := false
	for _, qtype := range []uint16{dns.TypeAAAA, dns.TypeA} {
		rrs, err := s.lookup(ctx, host, qtype)
		if err != nil {
			temporary = temporary || !errors.Is(err, ErrNoSuchName)
			errs = append(errs, err)
		}
		for _, rr := range rrs {
			var a netip.Addr
			ok := false
			switch rr := rr.(type) {
			case *dns.A:
				a, ok = netip.AddrFromSlice(rr.A.To4())
			case *dns.AAAA:
				a, ok = netip.AddrFromSlice(rr.AAAA.To16())
			}
			if ok {
				addrs = append(addrs, a)
			}
		}
	}
	if len(addrs) == 0 {
		err := errors.Join(append(errs, ErrNoAddress)...)
		return nil, &Error{Host: host, Stage: "address", Err: err, Temporary: temporary, next: true}
	}
	s.cfg.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return addrs, nil
}

// lookup asks the name servers in turn, all of them twice, until one answers. Only
// the answer section counts; what else a server volunteers is not trusted.
func (s *Sender) lookup(ctx context.Context, name string, qtype uint16) ([]dns.RR, error) {
	fqdn := dns.Fqdn(name)
	if _, ok := dns.IsDomainName(fqdn); !ok || !ascii(name) {
		return nil, fmt.Errorf("%w: %q is not a domain name", ErrNoSuchName, name)
	}
	var errs []error
	for range 2 {
		for _, server := range s.cfg.Servers {
			r, err := s.exchange(ctx, server, fqdn, qtype)
			if err == nil {
				switch r.Rcode {
				case dns.RcodeSuccess:
					return r.Answer, nil
				case dns.RcodeNameError:
					return nil, ErrNoSuchName
				}
				err = errors.New(dns.RcodeToString[r.Rcode])
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			errs = append(errs, fmt.Errorf("%s: %w", server, err))
		}
	}
	return nil, errors.Join(errs...)
}

// exchange asks one server, by UDP and, if the answer is cut, by TCP.
func (s *Sender) exchange(ctx context.Context, server, fqdn string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(fqdn, qtype)
	q.SetEdns0(dns.DefaultMsgSize, false)
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: s.cfg.Timeouts.Query}
		r, _, err := c.ExchangeContext(ctx, q, server)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", network, err)
		}
		if len(r.Question) != 1 || !strings.EqualFold(r.Question[0].Name, fqdn) || r.Question[0].Qtype != qtype {
			return nil, errors.New("answer to another question")
		}
		if !r.Truncated {
			return r, nil
		}
	}
	return nil, errors.New("answer cut short over TCP")
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
