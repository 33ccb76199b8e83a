package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"msgw/raftstore"
)

// announced keeps since when each key that is not used yet stands in the TLSA records of
// every site.
type announced struct {
	mu    sync.Mutex
	first map[string]time.Time // when each was first looked for
	since map[string]time.Time // since when all have it
	why   map[string]string    // who lacks it
	tlsa  time.Time            // when the zone was last seen to have TLSA records
}

// announcedLook is how often that is looked at.
const announcedLook = 5 * time.Second

// ready returns nil once no resolver can have TLSA records without a key: twice their TTL, in
// seconds, after every site answers them (RFC 7671 section 8.1).
func (a *announced) ready(key string, tlsa bool, ttl uint32, now time.Time) error {
	wait := 2 * time.Duration(ttl) * time.Second
	a.mu.Lock()
	defer a.mu.Unlock()
	if !tlsa {
		// Those that were there until now may be known for as long as they live.
		if until := a.tlsa.Add(wait); now.Before(until) {
			return fmt.Errorf("until %s resolvers may have the TLSA records that the zone had", until.Local().Format(time.DateTime))
		}
		return nil
	}
	since, ok := a.since[key]
	if !ok {
		return errors.New("not every site is known to answer TLSA records with it" + a.why[key])
	}
	if until := since.Add(wait); now.Before(until) {
		return fmt.Errorf("until %s resolvers may have TLSA records without it", until.Local().Format(time.DateTime))
	}
	return nil
}

// look asks the sites, of which self is this one, for the TLSA records of this host. keys are
// those that are not used yet.
func (a *announced) look(keys []string, tlsa bool, now time.Time, ask func(site string) (*dns.Msg, error), self string, sites []string) {
	first, lacks := map[string]time.Time{}, map[string]string{}
	a.mu.Lock()
	if tlsa {
		a.tlsa = now
	}
	for _, key := range keys {
		if first[key] = now; !a.first[key].IsZero() {
			first[key] = a.first[key]
		}
	}
	a.first = first
	a.mu.Unlock()
	for _, site := range sites {
		if len(keys) == 0 {
			break
		}
		m, err := ask(site)
		if err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			err = errors.New(dns.RcodeToString[m.Rcode])
		}
		for _, key := range keys {
			switch {
			case err == nil && len(m.Answer) > 0 && !hasKey(m, key):
				lacks[key] = ": " + site + " lacks it"
			case err == nil:
			case site == self || now.Sub(first[key]) <= servedFor:
				// It may be this node alone that it does not answer. What it was told last
				// it answers for that long, and then nothing.
				lacks[key] = fmt.Sprintf(": %s does not say: %v", site, err)
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.since
	a.since, a.why = map[string]time.Time{}, lacks
	for _, key := range keys {
		if _, missing := lacks[key]; missing {
			continue
		}
		if a.since[key] = now; !was[key].IsZero() {
			a.since[key] = was[key]
		}
	}
}

func hasKey(m *dns.Msg, key string) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		t, ok := rr.(*dns.TLSA)
		return ok && strings.EqualFold(t.Certificate, key)
	})
}

// keyAnnounced says whether a key of this node may be used; see certs.Options.
func (n *Node) keyAnnounced(key string) error {
	s := n.store.State()
	if !strings.HasSuffix(n.host(), "."+s.Zone.Name) {
		return nil // its TLSA records are not here
	}
	ttl := uint32(ttlTLSA)
	if most := s.Signing.MaxTTL; most > 0 {
		ttl = min(ttl, most)
	}
	return n.announced.ready(key, s.Content.TLSA, ttl, time.Now())
}

// watchAnnounced looks at the TLSA records of every site while a key is announced.
func (n *Node) watchAnnounced(ctx context.Context) error {
	for {
		var names []string
		nodes := map[string]raftstore.Node{}
		for _, site := range n.sites() {
			names, nodes[site.Name] = append(names, site.Name), site
		}
		n.announced.look(n.certs.Coming(), n.store.State().Content.TLSA, time.Now(), func(site string) (*dns.Msg, error) {
			return n.askSite(ctx, nodes[site], "_25._tcp."+n.host(), dns.TypeTLSA)
		}, n.id.Name, names)
		select {
		case <-time.After(announcedLook):
		case <-ctx.Done():
			return nil
		}
	}
}
