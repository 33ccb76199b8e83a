package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"msgw/internal/health"
	"msgw/raftstore"
)

// smtpPort is where senders go (RFC 5321 section 4.5.4.2).
const smtpPort = 25

// lookedUp keeps the last addresses of exchanges that have none of their own: they are not
// looked up for every probe, and a resolver that fails says nothing of them.
type lookedUp struct {
	mu   sync.Mutex
	last map[string]lookedUpAt // by host name
}

type lookedUpAt struct {
	addresses []string
	at        time.Time
}

const (
	lookedUpFor = time.Minute
	maxLookedUp = 8 // addresses of one exchange that are probed
)

func (l *lookedUp) get(host string) lookedUpAt {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[host]
}

func (l *lookedUp) set(host string, addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil || len(l.last) > maxLookedUp { // some of them were removed; the others are looked up again
		l.last = map[string]lookedUpAt{}
	}
	l.last[host] = lookedUpAt{addresses, time.Now()}
}

// ownResolver is the resolver of the configuration file, or the system's.
func (n *Node) ownResolver() *net.Resolver {
	r := &net.Resolver{}
	if to := n.cfg.Resolver; to != "" {
		r.PreferGo = true
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, to)
		}
	}
	return r
}

// exchangeTargets are the mail exchangers that are no nodes, for health.
func (n *Node) exchangeTargets() []health.Target {
	var ts []health.Target
	for _, e := range n.store.State().Content.SortedExchanges() {
		where := e.Addresses
		if len(where) == 0 {
			where = []string{e.Host}
		}
		t := health.Target{Name: e.Host, Host: e.Host, Exchange: func(ctx context.Context) error { return n.probeExchange(ctx, e) }}
		for _, a := range where {
			t.SMTP = append(t.SMTP, exchangeAddress(a, e))
		}
		ts = append(ts, t)
	}
	return ts
}

func exchangeAddress(host string, e raftstore.Exchange) string {
	port := e.Port
	if port == 0 {
		port = smtpPort
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func (n *Node) probeExchange(ctx context.Context, e raftstore.Exchange) error {
	list := e.Addresses
	if len(list) == 0 {
		var err error
		if list, err = n.lookUp(ctx, e.Host+"."); err != nil {
			return err
		}
	}
	where := make([]string, len(list))
	for i, a := range list {
		where[i] = exchangeAddress(a, e)
	}
	return health.ProbeExchange(ctx, where, n.host())
}

// lookUp asks the resolver for the addresses of a host, once a minute. Where the last ones are
// known, a resolver that does not answer takes half of the time of ctx at most: the probe has
// the rest.
func (n *Node) lookUp(ctx context.Context, host string) ([]string, error) {
	last := n.lookedUp.get(host)
	if time.Since(last.at) < lookedUpFor {
		return last.addresses, nil
	}
	r := n.ownResolver()
	asking := ctx
	if end, ok := ctx.Deadline(); ok && last.addresses != nil {
		var cancel func()
		asking, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	ips, err := r.LookupNetIP(asking, "ip", host)
	if err != nil {
		if last.addresses != nil {
			n.lookedUp.set(host, last.addresses)
			return last.addresses, nil
		}
		return nil, fmt.Errorf("addresses of %s: %w", host, err)
	}
	var list []string
	for _, ip := range ips {
		if a := ip.Unmap().String(); !slices.Contains(list, a) && len(list) < maxLookedUp {
			list = append(list, a)
		}
	}
	n.lookedUp.set(host, list)
	return list, nil
}
