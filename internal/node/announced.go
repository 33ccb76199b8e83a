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
)

// announced keeps since when each key that is not used yet stands in the TLSA records of
// every site that answers.
type announced struct {
	mu    sync.Mutex
	since map[string]time.Time
	why   map[string]string // those that lack it
}

// announcedLook is how often that is looked at.
const announcedLook = 5 * time.Second

// keyAnnounced returns nil once no resolver can have TLSA records without a key of this
// node: twice their TTL after every site answers them (RFC 7671 section 8.1).
func (n *Node) keyAnnounced(key string) error {
	s := n.store.State()
	if !s.Content.TLSA || !strings.HasSuffix(n.host(), "."+s.Zone.Name) {
		return nil
	}
	ttl := uint32(ttlTLSA)
	if most := s.Signing.MaxTTL; most > 0 {
		ttl = min(ttl, most)
	}
	n.announced.mu.Lock()
	defer n.announced.mu.Unlock()
	since, ok := n.announced.since[key]
	if !ok {
		return errors.New("not every site is known to answer TLSA records with it" + n.announced.why[key])
	}
	if until := since.Add(2 * time.Duration(ttl) * time.Second); time.Now().Before(until) {
		return fmt.Errorf("until %s resolvers may have TLSA records without it", until.Local().Format(time.DateTime))
	}
	return nil
}

// watchAnnounced looks at the TLSA records of every site while a key is announced.
func (n *Node) watchAnnounced(ctx context.Context) error {
	for {
		n.lookAtAnnounced(ctx)
		select {
		case <-time.After(announcedLook):
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *Node) lookAtAnnounced(ctx context.Context) {
	coming := n.certs.Coming()
	lacks := map[string]string{}
	if len(coming) > 0 {
		for _, site := range n.sites() {
			m, err := n.askSite(ctx, site, "_25._tcp."+n.host(), dns.TypeTLSA)
			if err != nil && site.Name != n.id.Name {
				continue // nobody has records of it
			}
			for _, key := range coming {
				if err != nil {
					lacks[key] = fmt.Sprintf(": %s does not say: %v", site.Name, err)
				} else if len(m.Answer) > 0 && !hasKey(m, key) {
					lacks[key] = ": " + site.Name + " lacks it"
				}
			}
		}
	}
	n.announced.mu.Lock()
	defer n.announced.mu.Unlock()
	was := n.announced.since
	n.announced.since, n.announced.why = map[string]time.Time{}, lacks
	for _, key := range coming {
		if _, missing := lacks[key]; missing {
			continue
		}
		since, seen := was[key]
		if !seen {
			since = time.Now()
		}
		n.announced.since[key] = since
	}
}

func hasKey(m *dns.Msg, key string) bool {
	return slices.ContainsFunc(m.Answer, func(rr dns.RR) bool {
		t, ok := rr.(*dns.TLSA)
		return ok && strings.EqualFold(t.Certificate, key)
	})
}
