package raftstore

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Content is what operators put into the zone besides what follows from the nodes. The
// zero value adds nothing.
type Content struct {
	Version     uint64       `json:"version,omitempty"` // raised by every change of it
	NameServers []NameServer `json:"name_servers,omitempty"`
	Apex        []string     `json:"apex,omitempty"` // addresses of the zone's own name; or ApexSites alone
	CAA         CAA          `json:"caa,omitzero"`
	TLSA        bool         `json:"tlsa,omitempty"` // TLSA records of the hosts inside the zone
	MTASTS      MTASTS       `json:"mta_sts,omitzero"`
	TLSReports  []string     `json:"tls_reports,omitempty"` // URIs that TLS reports go to
	Records     []string     `json:"records,omitempty"`     // each as ParseRecord writes it
	Exchanges   []Exchange   `json:"exchanges,omitempty"`
}

// NameServer is a name of the zone's NS records. If there are any, they stand in the place of
// the sites' host names.
type NameServer struct {
	Name string `json:"name"` // host name, without a final dot
	// Site is the node whose addresses the name has: of a name inside the zone that is not
	// a site's host name, and of no other.
	Site string `json:"site,omitempty"`
}

// ApexSites in Apex stands for the addresses of all sites.
const ApexSites = "sites"

// CAA says which CAs may issue certificates for names in the zone (RFC 8659); without Issue
// nothing is published and any may.
type CAA struct {
	Issue []string `json:"issue,omitempty"` // domains of CAs; CAAuto: that of the ACME directory
	// DenyWildcards forbids all of them certificates for wildcards.
	DenyWildcards bool   `json:"deny_wildcards,omitempty"`
	Iodef         string `json:"iodef,omitempty"` // URI that a CA reports violations to
	// Accounts binds the ACME directory's CA to the sites' accounts (RFC 8657 section 3).
	Accounts bool `json:"accounts,omitempty"`
}

// CAAuto in CAA.Issue stands for the CA of the ACME directory.
const CAAuto = "auto"

// MTASTS is the zone's policy (RFC 8461). The zero value publishes none.
type MTASTS struct {
	Mode   string `json:"mode,omitempty"`    // STSNone, STSTesting or STSEnforce; empty: no policy
	MaxAge uint32 `json:"max_age,omitempty"` // seconds; 0: a week
}

// Modes of a policy (RFC 8461 section 3.2).
const (
	STSNone    = "none"
	STSTesting = "testing"
	STSEnforce = "enforce"
)

// Exchange is a mail exchanger that is not a node, such as the gateway that msgw takes over
// from.
type Exchange struct {
	Host      string   `json:"host"` // without a final dot
	Weight    uint32   `json:"weight"`
	Addresses []string `json:"addresses,omitempty"` // needed inside the zone; outside: empty if they are looked up
	Port      int      `json:"port,omitempty"`      // where it is probed; 0: 25
}

// Bounds of Content.
const (
	maxNameServers = 13
	maxApex        = 8
	maxIssue       = 8
	maxReports     = 4
	maxURI         = 200
	maxRecords     = 100
	maxExchanges   = 8
	maxAddresses   = 8
	minSTSAge      = 300
	maxSTSAge      = 31557600 // RFC 8461 section 3.2
)

// SetContent replaces the content of the zone if it is still the version that was read.
type SetContent struct {
	Version uint64  `json:"version,omitempty"` // that the change was made from
	Content Content `json:"content"`
}

func (SetContent) op() string { return "zone.content" }
func (ch SetContent) apply(s *State, _ Command) error {
	if ch.Version != s.Content.Version {
		return rejectf("conflict", "the zone's settings were changed at the same time; try again")
	}
	for _, text := range ch.Content.Records {
		// One that is there already may have been written by another version.
		if _, canonical, err := ParseRecord(s.Zone.Name, text); err == nil && canonical != text && !slices.Contains(s.Content.Records, text) {
			return rejectf("invalid", "record %.80q: expected it as %.80q", text, canonical)
		}
	}
	ch.Content.Version = ch.Version + 1
	s.Content = ch.Content
	return s.checkContent()
}

// CheckContent returns the *Rejection that a change to the content of s would get, or nil.
func CheckContent(s *State) error { return s.checkContent() }

// checkContent looks for what cannot be served, alone or together with the nodes.
func (s *State) checkContent() error {
	c := s.Content
	if err := c.checkSettings(); err != nil {
		return err
	}
	if c.MTASTS.Mode == STSEnforce && len(c.Exchanges) > 0 {
		return rejectf("conflict", "mta-sts enforce: %s is no node, and whether senders trust its certificate is not known here; expected testing, or no exchange", c.Exchanges[0].Host)
	}
	z := newNames(s)
	for _, e := range c.Exchanges {
		if err := z.exchange(e); err != nil {
			return err
		}
	}
	for _, ns := range c.NameServers {
		if err := z.nameServer(s, ns); err != nil {
			return err
		}
	}
	return z.records(c.Records)
}

// contentFits checks the content together with a node that joins or changes.
func (s *State) contentFits(n Node) error {
	with := *s
	with.Nodes = maps.Clone(s.Nodes)
	with.Nodes[n.Name] = n
	return with.checkContent()
}

// checkSettings checks each setting by itself.
func (c Content) checkSettings() error {
	for _, b := range []struct {
		name      string
		have, max int
	}{
		{"name servers", len(c.NameServers), maxNameServers}, {"addresses of the apex", len(c.Apex), maxApex}, {"caa", len(c.CAA.Issue), maxIssue},
		{"tls-reports", len(c.TLSReports), maxReports}, {"records", len(c.Records), maxRecords}, {"exchanges", len(c.Exchanges), maxExchanges},
	} {
		if b.have > b.max {
			return rejectf("invalid", "%s: %d, expected at most %d", b.name, b.have, b.max)
		}
	}
	if !slices.Equal(c.Apex, []string{ApexSites}) {
		if err := checkAddresses("apex", c.Apex); err != nil {
			return err
		}
	}
	if err := c.CAA.check(); err != nil {
		return err
	}
	if err := c.MTASTS.check(); err != nil {
		return err
	}
	for i, u := range c.TLSReports {
		if err := checkURI("tls-reports", u); err != nil {
			return err
		}
		if slices.Contains(c.TLSReports[:i], u) {
			return rejectf("invalid", "tls-reports: %s is named twice", u)
		}
	}
	return nil
}

func (c CAA) check() error {
	for i, d := range c.Issue {
		if d != CAAuto && !IsHostName(d) {
			return rejectf("invalid", "caa: %.60q, expected the domain of a CA, as in letsencrypt.org, or %s", d, CAAuto)
		}
		if slices.Contains(c.Issue[:i], d) {
			return rejectf("invalid", "caa: %s is named twice", d)
		}
	}
	switch {
	case len(c.Issue) == 0 && (c.DenyWildcards || c.Accounts || c.Iodef != ""):
		return rejectf("invalid", "caa: nothing can be added to it while it is off")
	case c.Accounts && !slices.Contains(c.Issue, CAAuto):
		return rejectf("invalid", "caa-accounts: the accounts are those at the ACME directory; expected caa %s", CAAuto)
	case c.Iodef != "":
		return checkURI("caa-iodef", c.Iodef)
	}
	return nil
}

func (m MTASTS) check() error {
	switch {
	case m.Mode != "" && m.Mode != STSNone && m.Mode != STSTesting && m.Mode != STSEnforce:
		return rejectf("invalid", "mta-sts %.20q: expected off, none, testing or enforce", m.Mode)
	case m.MaxAge != 0 && (m.MaxAge < minSTSAge || m.MaxAge > maxSTSAge):
		return rejectf("invalid", "mta-sts-max-age %d: expected %d to %d seconds", m.MaxAge, minSTSAge, maxSTSAge)
	}
	return nil
}

// checkURI checks what goes into a record of tags and values: what would end a value there
// has to be written as %2C, %21 or %3B (RFC 8460 section 3).
func checkURI(name, uri string) error {
	rest, mail := strings.CutPrefix(uri, "mailto:")
	web, https := strings.CutPrefix(uri, "https://")
	local, domain, at := strings.Cut(rest, "@")
	host, _, _ := strings.Cut(web, "/")
	if len(uri) > maxURI || !(mail && at && local != "" && IsHostName(domain) || https && IsHostName(host)) ||
		strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`,!;"\`, r) }) {
		return rejectf("invalid", "%s: %.60q, expected an address, as in mailto:postmaster@example.com, or an https URL, of at most %d octets", name, uri, maxURI)
	}
	return nil
}

func checkAddresses(name string, list []string) error {
	for i, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.String() != s {
			return rejectf("invalid", "%s: %.60q, expected an address of a host", name, s)
		}
		if slices.Contains(list[:i], s) {
			return rejectf("invalid", "%s: %s is named twice", name, s)
		}
	}
	return nil
}

// IsHostName reports whether a name can be a public host's, in lower case and without a final
// dot (RFC 1123 section 2.1).
func IsHostName(name string) bool {
	if len(name) > 253 || !strings.Contains(name, ".") {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
			return false
		}
	}
	return true
}

// fqdn is a name of the state as it stands in a zone.
func fqdn(name string) string { return dns.CanonicalName(name) }

// SortedExchanges returns the exchanges by host name.
func (c Content) SortedExchanges() []Exchange {
	return slices.SortedFunc(slices.Values(c.Exchanges), func(a, b Exchange) int { return cmp.Compare(a.Host, b.Host) })
}
