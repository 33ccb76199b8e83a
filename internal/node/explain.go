package node

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"msgw/internal/admin"
	"msgw/raftstore"
)

// DNS explains what this node answers; others: and what the other sites do.
func (n operator) DNS(ctx context.Context, others bool) (admin.DNS, error) {
	out, err := n.explain()
	if err == nil && others {
		out.Others = n.explainOthers(ctx)
	}
	return out, err
}

// explain says what this node answers, and why.
func (n *Node) explain() (admin.DNS, error) {
	if n.zone == nil {
		return admin.DNS{}, admin.Errorf(http.StatusConflict, "ask a site", "a witness answers no DNS")
	}
	s := n.zone.snap.Load()
	out := admin.DNS{Node: n.id.Name, Zone: strings.TrimSuffix(s.zone.Name, "."), Serial: s.zone.Serial, Mode: n.store.State().Zone.MXMode,
		Fresh: s.fresh, MX: s.mx(), Sample: []string{}, Faults: []string{}, Notes: append([]string{}, s.notes...)}
	for _, x := range s.sample() {
		out.Sample = append(out.Sample, fmt.Sprintf("%s %d IN MX %d %s", s.zone.Name, s.zone.TTL(), x.Preference, x.Host))
	}
	if err := s.zone.Check(); err != nil {
		out.Faults = strings.Split(err.Error(), "\n")
	}
	return out, nil
}

// explainTime bounds how long the other sites are waited for.
const explainTime = 3 * time.Second

// explainOthers asks the other sites what they answer, and why.
func (n *Node) explainOthers(ctx context.Context) []admin.DNS {
	ctx, cancel := context.WithTimeout(ctx, explainTime)
	defer cancel()
	var sites []raftstore.Node
	for _, node := range n.store.State().SortedNodes() {
		if node.Role == raftstore.Site && node.Name != n.id.Name {
			sites = append(sites, node)
		}
	}
	out := make([]admin.DNS, len(sites))
	var wg sync.WaitGroup
	for i, node := range sites {
		wg.Go(func() {
			if err := n.askStatus(ctx, node.ID, "/dns", struct{}{}, &out[i]); err != nil {
				out[i] = admin.DNS{Error: err.Error()}
			}
			out[i].Node = node.Name
		})
	}
	wg.Wait()
	return out
}
