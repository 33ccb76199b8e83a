// Package dnsplugin is a CoreDNS plugin that answers one delegated zone from an
// immutable snapshot and draws the zone's MX set anew for each answer, so that
// senders spread over the mail hosts by weight.
//
// It promises never to answer worse than static MX records would: the state of a
// host changes its preference and nothing else. Every configured host is in every
// MX answer, name servers and addresses are never steered, and when nothing is
// known to work everything is answered as configured.
//
// The package knows neither where the snapshot comes from nor how health is
// judged; see [Source], [Zone] and [Host]. [Server] runs the plugin on CoreDNS
// without a Corefile, so that several can live in one process.
package dnsplugin

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// TTLs in seconds. An MX answer is short-lived since it is a draw, shorter still
// while a verdict is about to change.
const (
	ttlSOA         = 3600
	ttlNS          = 3600
	ttlAddress     = 300
	ttlMX          = 60
	ttlMXUnsettled = 30
	ttlANY         = 3600
	ttlChallenge   = 0 // ACME servers are confused by anything they can cache
	ttlNegative    = 60
	ttlKey         = 3600
)

// Timers of the SOA record in seconds (RFC 1035 section 3.3.13). No secondary
// transfers this zone, so they only have to look sane to checkers.
const (
	soaRefresh = 14400
	soaRetry   = 3600
	soaExpire  = 604800
)

// Zone is one version of everything the plugin answers. It must not change once
// it was handed over; a new version is a new Zone.
type Zone struct {
	Name    string // apex, for example "msgw.example.com."
	Serial  uint32 // of the SOA; the same on every server of the zone
	Contact string // mailbox of whoever is responsible; empty: hostmaster at the zone
	Mode    Mode
	Hosts   []Host // the mail hosts; some of them the zone's name servers too
	// NameServers of the zone; if there are none, the hosts that say so are.
	NameServers []NameServer
	// Unsettled says that some verdict is about to change, which halves the
	// TTL of MX answers.
	Unsettled bool
	// Records are served as they are, below or at the apex. NS records below
	// the apex delegate. See Check for what cannot be served.
	Records []dns.RR
	// Keys sign the zone; none: it is not signed.
	Keys []Key
	// Unsigning asks the parent to remove its DS records (RFC 8078 section 4).
	Unsigning bool
	// MaxTTL bounds every TTL of the zone, in seconds, and so how long a rollover takes.
	// 0: it does not.
	MaxTTL uint32
}

// Host is one mail host.
type Host struct {
	Name       string // may lie outside the zone; its addresses are then not served
	V4, V6     []netip.Addr
	Weight     uint32 // share of the mail relative to the other hosts
	State      State
	NameServer bool // also a name server of the zone
}

// NameServer is a name of the zone's NS records, which never depend on health. One inside the
// zone that is no mail host has addresses of its own, which are served, and are the glue of
// a delegation in the parent zone.
type NameServer struct {
	Name   string
	V4, V6 []netip.Addr // of a name outside the zone or of a mail host: none
}

// Mode is how weights become MX preferences.
type Mode int

const (
	// Tier ties the k heaviest hosts at one preference, k drawn such that every
	// host's expected share is exactly its weight. Equal weights are always
	// answered as equal preferences.
	Tier Mode = iota
	// Rank draws a total order and never answers equal preferences to hosts in use.
	Rank
)

// State is the verdict on a host.
type State int

const (
	Up      State = iota // takes mail; also what to say when nothing is known
	Drained              // works, but an operator wants no mail there
	Down                 // does not work
)

func (s State) String() string {
	switch s {
	case Up:
		return "up"
	case Drained:
		return "drained"
	case Down:
		return "down"
	}
	return fmt.Sprintf("state %d", int(s))
}

// Source gives the current version of the zone. It is read at each query, by many
// goroutines at once, and must not wait for anything. Nil means that there is none
// yet; everything is answered SERVFAIL then.
type Source interface{ Zone() *Zone }

// Challenges gives the values of the ACME DNS-01 TXT records this server holds
// itself (RFC 8555 section 8.4), none for a name without a challenge under way.
// Names are lower case and fully qualified. As with Source, it is called at each
// query and must not wait.
type Challenges interface{ TXT(name string) []string }

// TTL is that of the zone's MX records, in seconds.
func (z *Zone) TTL() uint32 {
	if z.Unsettled {
		return z.capped(ttlMXUnsettled)
	}
	return z.capped(ttlMX)
}

// capped returns a TTL, at most the highest of the zone.
func (z *Zone) capped(ttl uint32) uint32 {
	if z.MaxTTL > 0 {
		return min(ttl, z.MaxTTL)
	}
	return ttl
}

// Delegation returns what the parent zone has to hold to delegate the zone, DS records
// aside: the name servers, and the addresses of those whose names are in the zone (RFC
// 1034 section 4.2.1).
func (z *Zone) Delegation() []dns.RR {
	ix := newIndex(z, "")
	if ix.name == "" {
		return nil
	}
	var rrs []dns.RR
	for _, ns := range ix.names[ix.name][dns.TypeNS] {
		rrs = append(rrs, dns.Copy(ns))
	}
	for _, ns := range rrs[:len(rrs):len(rrs)] {
		for _, a := range ix.addresses(targetOf(ns)) {
			rrs = append(rrs, dns.Copy(a))
		}
	}
	for _, rr := range rrs {
		rr.Header().Ttl = ttlNS
	}
	return rrs
}

// HighestTTL returns the highest TTL in the zone, in seconds.
func (z *Zone) HighestTTL() uint32 {
	ix, ttl := newIndex(z, ""), z.capped(ttlANY)
	for _, sets := range ix.names {
		for _, set := range sets {
			ttl = max(ttl, set[0].Header().Ttl)
		}
	}
	return ttl
}

// mailbox writes an e-mail address as the RNAME of a SOA record, where dots of the
// local part are escaped (RFC 1035 section 8).
func mailbox(address string) (string, error) {
	at := strings.LastIndexByte(address, '@')
	if at <= 0 || at == len(address)-1 {
		return "", fmt.Errorf("contact %q is not a mailbox", address)
	}
	local := strings.NewReplacer(`\`, `\\`, `.`, `\.`, `"`, `\"`).Replace(address[:at])
	name := local + "." + dns.CanonicalName(address[at+1:])
	if !validName(name) {
		return "", fmt.Errorf("contact %q cannot be written as a domain name", address)
	}
	return name, nil
}

// validName reports whether name goes on the wire as a fully qualified name other
// than the root.
func validName(name string) bool {
	if name == "." || !dns.IsFqdn(name) {
		return false
	}
	_, err := dns.PackDomainName(name, make([]byte, 256), 0, nil, false)
	return err == nil
}
