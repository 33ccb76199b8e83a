package node

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"msgw/internal/admin"
	"msgw/raftstore"
)

// Zone returns what operators put into the zone.
func (n operator) Zone(context.Context) (admin.ZoneSettings, error) {
	s := n.store.State()
	c := s.Content
	out := admin.ZoneSettings{Zone: s.Zone.Name, Version: c.Version, NameServers: []admin.NameServer{}, Apex: append([]string{}, c.Apex...),
		CAA:  admin.CAA{Issue: append([]string{}, c.CAA.Issue...), DenyWildcards: c.CAA.DenyWildcards, Iodef: c.CAA.Iodef, Accounts: c.CAA.Accounts},
		TLSA: c.TLSA, MTASTS: admin.MTASTS(c.MTASTS), TLSReports: append([]string{}, c.TLSReports...), Records: append([]string{}, c.Records...),
		Exchanges: []admin.MailExchange{}, Notes: append([]string{}, n.zoneNotes(s)...)}
	for _, ns := range c.NameServers {
		out.NameServers = append(out.NameServers, admin.NameServer(ns))
	}
	for _, e := range c.SortedExchanges() {
		out.Exchanges = append(out.Exchanges, admin.MailExchange(e))
	}
	return out, nil
}

// zoneNotes says what a configuration sets and the zone does not hold as it is set.
func (n *Node) zoneNotes(s *raftstore.State) []string {
	return buildZone(s, n.serves(), nil, true, false).notes
}

// content is a change as it is replicated: what is empty is absent.
func content(z admin.ZoneSettings) raftstore.Content {
	some := func(list []string) []string {
		if len(list) == 0 {
			return nil
		}
		return list
	}
	c := raftstore.Content{Apex: some(z.Apex), TLSA: z.TLSA, MTASTS: raftstore.MTASTS(z.MTASTS), TLSReports: some(z.TLSReports), Records: some(z.Records),
		CAA: raftstore.CAA{Issue: some(z.CAA.Issue), DenyWildcards: z.CAA.DenyWildcards, Iodef: z.CAA.Iodef, Accounts: z.CAA.Accounts}}
	for _, ns := range z.NameServers {
		c.NameServers = append(c.NameServers, raftstore.NameServer(ns))
	}
	for _, e := range z.Exchanges {
		c.Exchanges = append(c.Exchanges, raftstore.Exchange{Host: e.Host, Weight: e.Weight, Addresses: some(e.Addresses), Port: e.Port})
	}
	return c
}

// SetZone replaces what operators put into the zone.
func (n operator) SetZone(ctx context.Context, z admin.ZoneSettings) (admin.ZoneChange, error) {
	s := n.store.State()
	c := content(z)
	if err := n.checkContent(s, c); err != nil {
		return admin.ZoneChange{}, err
	}
	change, err := n.change(ctx, raftstore.SetContent{Version: z.Version, Content: c})
	if err != nil {
		return admin.ZoneChange{}, err
	}
	n.log.Info("content of the zone changed", "applied", change.Applied, "missing", change.Missing)
	return admin.ZoneChange{Change: change, Notes: append([]string{}, n.zoneNotes(n.store.State())...)}, nil
}

// checkContent checks what depends on more than the configuration, which every node checks
// when the change is applied: what the sites report, and what the DNS server here can serve.
func (n *Node) checkContent(s *raftstore.State, c raftstore.Content) error {
	if c.MTASTS.Mode == raftstore.STSEnforce && s.Content.MTASTS.Mode != raftstore.STSEnforce {
		if missing := untrusted(s, current(s, n.servesWithin(servedNear))); len(missing) > 0 {
			return admin.Errorf(http.StatusConflict, "senders would send these sites nothing; see `msgw acme`, and use testing until then",
				"mta-sts enforce: no publicly trusted certificate is known to be served by %s", strings.Join(missing, ", "))
		}
	}
	if slices.Contains(c.CAA.Issue, raftstore.CAAuto) && !slices.Contains(s.Content.CAA.Issue, raftstore.CAAuto) && directoryCA(s.ACME) == "" {
		return admin.Errorf(http.StatusConflict, "set the directory with `msgw acme` first, or name the CA's domain", "caa auto: the CA of the ACME directory %q is not known", s.ACME.Directory)
	}
	if ca := directoryCA(s.ACME); ca != "" && forbids(c.CAA, ca) && !forbids(s.Content.CAA, ca) {
		return admin.Errorf(http.StatusConflict, "name it as well, or auto", "caa: it forbids %s, the CA of the ACME directory, to renew the certificates of the sites", ca)
	}
	with := *s
	with.Content = c
	before, after := buildZone(s, n.serves(), nil, true, false).zone.Check(), buildZone(&with, n.serves(), nil, true, false).zone.Check()
	if after == nil || before != nil && before.Error() == after.Error() {
		return nil
	}
	// What the store rejects it says more clearly.
	if err := raftstore.CheckContent(&with); err != nil {
		return proposeError(err)
	}
	return admin.Errorf(http.StatusBadRequest, "", "the zone could not be served: %s", strings.ReplaceAll(after.Error(), "\n", "; "))
}

// checkACME checks whether the zone lets certificates of another directory be used.
func checkACME(s *raftstore.State, a raftstore.ACME) error {
	if a.Directory == s.ACME.Directory {
		return nil
	}
	if s.Content.MTASTS.Mode == raftstore.STSEnforce {
		return admin.Errorf(http.StatusConflict, "set mta-sts to testing, and wait as long as senders keep the policy",
			"mta-sts is enforce: until the sites have certificates of another directory, senders would send them nothing")
	}
	if ca := directoryCA(a); ca != "" && forbids(s.Content.CAA, ca) {
		return admin.Errorf(http.StatusConflict, "name it with `msgw dns set --caa` first", "the CAA records of the zone forbid %s, the CA of this directory, to issue certificates", ca)
	}
	return nil
}

// forbids reports whether CAA records forbid a CA to issue certificates (RFC 8659 section 4.2).
func forbids(c raftstore.CAA, ca string) bool {
	return len(c.Issue) > 0 && !slices.Contains(c.Issue, raftstore.CAAuto) && !slices.Contains(c.Issue, ca)
}

// untrusted returns the sites that are not known to serve a publicly trusted certificate.
func untrusted(s *raftstore.State, serves map[string]served) (names []string) {
	for _, name := range s.Sites() {
		if !serves[name].Trusted {
			names = append(names, name)
		}
	}
	return names
}
