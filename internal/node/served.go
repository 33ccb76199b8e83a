package node

import (
	"context"
	"encoding/hex"
	"maps"
	"slices"
	"sync"
	"time"

	"msgw/raftstore"
)

// served is what a site says of what it serves.
type served struct {
	Keys    []string `json:"keys"`              // SHA-256 of each public key that its SMTP port may show, in hex
	Trusted bool     `json:"trusted"`           // it shows a certificate of the ACME directory, in force
	Account string   `json:"account,omitempty"` // URI of its ACME account; empty: none yet, or not asked for
	Policy  bool     `json:"policy"`            // it serves the MTA-STS policy
	// PolicyTrusted: and with a publicly trusted certificate.
	PolicyTrusted bool   `json:"policy_trusted,omitempty"`
	Method        string `json:"method,omitempty"` // how it proves its host name; empty: dns-01

	machine string // SealTo of the node that said it; empty: this one itself
}

// valid reports whether what another node says can be used.
func (s served) valid() bool {
	if len(s.Keys) > 16 || s.Method != "" && !slices.Contains(challengeMethods, s.Method) {
		return false
	}
	for _, k := range s.Keys {
		if b, err := hex.DecodeString(k); err != nil || len(b) != 32 {
			return false
		}
	}
	return true
}

// Ages up to which a site's word counts: for its records, since keys are announced for longer
// before they are used; and for a change that is harmful if it is wrong.
const (
	servedFor  = time.Hour
	servedNear = time.Minute
)

// toldServed keeps the last word of each other site.
type toldServed struct {
	mu   sync.Mutex
	last map[string]toldAt
}

type toldAt struct {
	served
	at time.Time
}

// note takes down what a node says, and the machine that it was; nil, from an older version,
// says nothing.
func (t *toldServed) note(name, machine string, s *served) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]toldAt{}
	}
	if delete(t.last, name); s != nil && s.valid() {
		at := toldAt{*s, time.Now()}
		at.machine = machine
		t.last[name] = at
	}
}

// within returns what was said not longer ago than age.
func (t *toldServed) within(age time.Duration) map[string]served {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]served{}
	for name, s := range t.last {
		if time.Since(s.at) <= age {
			out[name] = s.served
		}
	}
	return out
}

// current leaves out what was said by a machine whose place another one has taken: that one has
// keys and an account of its own.
func current(s *raftstore.State, serves map[string]served) map[string]served {
	out := maps.Clone(serves)
	maps.DeleteFunc(out, func(name string, told served) bool { return told.machine != "" && told.machine != s.Nodes[name].SealTo })
	return out
}

// serves returns what the sites say that they serve, and what this one does.
func (n *Node) serves() map[string]served { return n.servesWithin(servedFor) }

func (n *Node) servesWithin(age time.Duration) map[string]served {
	out := n.told.within(age)
	if s := n.servesItself(); s != nil {
		out[n.id.Name] = *s
	}
	return out
}

// servesItself is what this node says; nil if it is no site.
func (n *Node) servesItself() *served {
	if n.certs == nil {
		return nil
	}
	now, state := time.Now(), n.store.State()
	s := &served{Keys: n.certs.Keys(), Trusted: n.certs.Trusted(n.host(), now), Policy: n.cfg.Listen.HTTPS != "", Method: n.cfg.ACME.Challenge}
	s.PolicyTrusted = state.Content.MTASTS.Mode != "" && n.certs.Trusted(stsHost(state), now)
	if state.Content.CAA.Accounts {
		s.Account = n.certs.Account(context.Background())
	}
	return s
}

// sharedNames are the names that the sites' certificates have in common.
func (n *Node) sharedNames() []string {
	if s := n.store.State(); s.Content.MTASTS.Mode != "" {
		return []string{stsHost(s)}
	}
	return nil
}

// stsHost is where the policy of the zone is (RFC 8461 section 3.3).
func stsHost(s *raftstore.State) string { return "mta-sts." + s.Zone.Name }

// stsText is what the HTTPS port answers for a host name.
func (n *Node) stsText(host string) (string, bool) {
	s := n.store.State()
	if s.Content.MTASTS.Mode == "" || host != stsHost(s) {
		return "", false
	}
	return stsPolicy(s).Text(), true
}
