package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/health"
	"msgw/raftstore"
)

// challengeName is where the proof of a node's host name stands, which is delegated to that
// node alone. A host outside of the zone has to have an alias that leads there.
func challengeName(zone, node, host string) string {
	if strings.HasSuffix(host, "."+zone) {
		return dns.Fqdn("_acme-challenge." + host)
	}
	return dns.Fqdn(node + "._acme-challenge." + zone)
}

// Times to tell another site of a challenge, to ask its DNS, and until it answers it.
const (
	challengeTell   = 5 * time.Second
	challengeAsk    = 3 * time.Second
	challengeAnswer = 20 * time.Second
)

// challenge is what a site wants to be answered for a name that the sites share.
type challenge struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// answerChallenge takes down what another site wants to be answered.
func (n *Node) answerChallenge(ctx context.Context, c challenge) (struct{}, error) {
	id, err := n.asker(ctx)
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, n.certs.Tell(id.Node, c.Name, c.Values)
}

// tellChallenge makes every site answer values, and waits until they do. A site that cannot
// be told and whose DNS does not answer either is left out: no CA can ask it.
func (n *Node) tellChallenge(ctx context.Context, name string, values []string) error {
	sites := n.sites()
	errs := make([]error, len(sites))
	var wg sync.WaitGroup
	for i, site := range sites {
		wg.Go(func() { errs[i] = n.tellOne(ctx, site, challenge{name, values}) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (n *Node) tellOne(ctx context.Context, site raftstore.Node, c challenge) error {
	if site.Name != n.id.Name {
		telling, cancel := context.WithTimeout(ctx, challengeTell)
		err := peerCalls{n}.call(telling, site.Name, "/challenge", c, nil)
		cancel()
		if err != nil {
			if _, derr := n.askSite(ctx, site, n.store.State().Zone.Name, dns.TypeSOA); derr != nil {
				return nil
			}
			return fmt.Errorf("%s cannot be told of it, but its DNS answers, and the CA might ask it: %w", site.Name, err)
		}
	}
	for end := time.Now().Add(challengeAnswer); ; {
		m, err := n.askSite(ctx, site, c.Name, dns.TypeTXT)
		if err == nil {
			have := texts(m)
			if !slices.ContainsFunc(c.Values, func(v string) bool { return !slices.Contains(have, v) }) {
				return nil
			}
			err = fmt.Errorf("it answers %d other values", len(have))
		} else if site.Name != n.id.Name {
			return nil // it was told, and cannot be asked
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("the DNS of %s does not answer it: %w", site.Name, err)
		}
		select {
		case <-time.After(time.Second / 4):
		case <-ctx.Done():
		}
	}
}

// texts are the TXT records of an answer.
func texts(m *dns.Msg) (out []string) {
	for _, rr := range m.Answer {
		if t, ok := rr.(*dns.TXT); ok {
			out = append(out, strings.Join(t.Txt, ""))
		}
	}
	return out
}

// sites returns the sites of the configuration.
func (n *Node) sites() (out []raftstore.Node) {
	for _, node := range n.store.State().SortedNodes() {
		if node.Role == raftstore.Site {
			out = append(out, node)
		}
	}
	return out
}

// askSite asks a site's DNS, as the world does, a question. The error is that none of its
// addresses answers.
func (n *Node) askSite(ctx context.Context, site raftstore.Node, name string, qtype uint16) (*dns.Msg, error) {
	var where []string
	if site.Name == n.id.Name {
		where = []string{reachable(n.cfg.Listen.DNS)} // the public address may not be reachable from the inside
	} else {
		for _, a := range append(addrs(site.V4), addrs(site.V6)...) {
			where = append(where, net.JoinHostPort(a.String(), strconv.Itoa(site.DNSPort)))
		}
	}
	err := fmt.Errorf("%s has no address", site.Name)
	for _, to := range where {
		asking, cancel := context.WithTimeout(ctx, challengeAsk)
		var m *dns.Msg
		m, err = health.AskDNS(asking, to, name, qtype)
		cancel()
		if err == nil {
			return m, nil
		}
	}
	return nil, err
}
