package node

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/internal/delegation"
	"msgw/raftstore"
)

// ParentRecords says what the parent zone has to hold.
func (n operator) ParentRecords(context.Context) (admin.ParentRecords, error) {
	if n.zone == nil {
		return admin.ParentRecords{}, admin.Errorf(http.StatusConflict, "ask a site", "a witness answers no DNS")
	}
	s := n.store.State()
	g := s.Signing
	out := admin.ParentRecords{Zone: s.Zone.Name, Records: []admin.ParentRecord{}}
	for _, rr := range n.zone.Zone().Delegation() {
		h := rr.Header()
		out.Records = append(out.Records, admin.ParentRecord{Name: h.Name, TTL: h.Ttl, Type: dns.TypeToString[h.Rrtype], Data: strings.TrimPrefix(rr.String(), h.String())})
	}
	if g.WantsDS(time.Now()) {
		out.Records = append(out.Records, admin.ParentRecord{Name: s.Zone.Name + ".", TTL: 3600, Type: "DS", Data: dsOf(s.Zone.Name, g.Keys[g.Active()])})
	}
	switch {
	case g.Phase == raftstore.NewDS:
		out.Notes = append(out.Notes, "the DS takes the place of that of the old key, "+dsOf(s.Zone.Name, g.Keys[0]))
	case g.Phase == raftstore.Leaving:
		out.Notes = append(out.Notes, "no DS: remove any that is there")
	case g.Phase != raftstore.Unsigned && g.DSFrom.IsZero():
		out.Notes = append(out.Notes, "no DS yet: not every site is known to sign; look again with `msgw dns sign`")
	case g.Phase != raftstore.Unsigned && !g.WantsDS(time.Now()):
		out.Notes = append(out.Notes, fmt.Sprintf("no DS before %s: resolvers still have unsigned answers", g.DSFrom.Local().Format(time.DateTime)))
	}
	return out, nil
}

// lookFunc is delegation.Looker.Look.
type lookFunc func(ctx context.Context, zone string, hosts []string) (delegation.View, error)

// lookAtParent looks from this node.
func (n *Node) lookAtParent(ctx context.Context) admin.ParentView {
	s := n.store.State()
	var hosts []string
	for _, node := range s.SortedNodes() {
		if node.Role == raftstore.Site {
			hosts = append(hosts, dns.Fqdn(node.Host))
		}
	}
	out := admin.ParentView{Node: n.id.Name}
	look := n.lookParent
	if look == nil {
		look = delegation.Looker{Resolver: n.cfg.Resolver}.Look
	}
	v, err := look(ctx, s.Zone.Name+".", hosts)
	if out.View = v; err != nil {
		out.Error = err.Error()
	}
	return out
}

// lookFromAll lets every node look at the parent.
func (n *Node) lookFromAll(ctx context.Context) []admin.ParentView {
	nodes := n.store.State().SortedNodes()
	views := make([]admin.ParentView, len(nodes))
	var wg sync.WaitGroup
	for i, node := range nodes {
		wg.Go(func() {
			if node.Name == n.id.Name {
				views[i] = n.lookAtParent(ctx)
			} else if err := (peerCalls{n}).call(ctx, node.Name, "/delegation", struct{}{}, &views[i]); err != nil {
				views[i] = admin.ParentView{Error: err.Error()}
			}
			views[i].Node = node.Name
		})
	}
	wg.Wait()
	return views
}

// CheckParent compares what the parent has to hold with what it serves, from each node.
func (n operator) CheckParent(ctx context.Context) (admin.ParentCheck, error) {
	want, err := n.ParentRecords(ctx)
	if err != nil {
		return admin.ParentCheck{}, err
	}
	s := n.store.State()
	out := admin.ParentCheck{Zone: want.Zone, OK: true, Nodes: n.lookFromAll(ctx)}
	for i := range out.Nodes {
		v := &out.Nodes[i]
		if v.Differences = parentDifferences(want, s, v.View); v.Error != "" || len(v.Differences) > 0 {
			out.OK = false
		}
	}
	return out, nil
}

// parentDifferences says what a view of the parent has that it should not, and lacks.
func parentDifferences(want admin.ParentRecords, s *raftstore.State, v delegation.View) []string {
	var ns, glue []string
	for _, r := range want.Records {
		switch r.Type {
		case "NS":
			ns = append(ns, dns.CanonicalName(r.Data))
		case "A", "AAAA":
			glue = append(glue, dns.CanonicalName(r.Name)+" "+r.Data)
		}
	}
	out := []string{}
	for _, srv := range v.Servers {
		at := fmt.Sprintf("%s (%s)", srv.Name, srv.Address)
		if srv.Error != "" {
			out = append(out, at+": "+srv.Error)
			continue
		}
		if !srv.Delegated {
			out = append(out, at+": the zone is not delegated")
			continue
		}
		out = append(out, compare(at, "NS", ns, srv.NS)...)
		// All of it: RFC 9471 section 3.
		out = append(out, compare(at, "glue", glue, srv.Glue)...)
	}
	return append(out, dsDifferences(want.Zone, s.Signing, s.Signing.WantsDS(time.Now()), v)...)
}

func compare(at, what string, want, have []string) (out []string) {
	for _, w := range want {
		if !slices.Contains(have, w) {
			out = append(out, fmt.Sprintf("%s: %s %s is missing", at, what, w))
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			out = append(out, fmt.Sprintf("%s: %s %s does not belong there", at, what, h))
		}
	}
	return out
}

// dsDifferences compares the DS records with what the phase wants: one of the active key,
// whatever its digest, if there is to be one, and no others.
func dsDifferences(zone string, g raftstore.Signing, wanted bool, v delegation.View) (out []string) {
	wanted = wanted && g.Phase != raftstore.Leaving && g.Phase != raftstore.Unsigned
	var good []string
	if wanted {
		key := dnskeyOf(zone, g.Keys[g.Active()])
		for _, digest := range []uint8{dns.SHA256, dns.SHA384, dns.SHA1} {
			good = append(good, delegation.DS(key.ToDS(digest)))
		}
	}
	for _, srv := range v.Servers {
		if srv.Error != "" {
			continue
		}
		at := fmt.Sprintf("%s (%s)", srv.Name, srv.Address)
		found := false
		for _, ds := range srv.DS {
			if slices.Contains(good, ds) {
				found = true
			} else {
				out = append(out, fmt.Sprintf("%s: DS %s does not belong there", at, ds))
			}
		}
		if wanted && !found {
			out = append(out, fmt.Sprintf("%s: DS %s is missing", at, good[0]))
		}
	}
	return out
}
