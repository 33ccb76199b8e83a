package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"msgw/internal/admin"
	"msgw/internal/health"
	"msgw/raftstore"
)

// operator is the admin.Node of this node.
type operator struct{ *Node }

// proposeTime is how long a change may take before it is given up.
const proposeTime = 10 * time.Second

// change proposes and then waits for the sites.
func (n operator) change(ctx context.Context, ch raftstore.Change) (admin.Change, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTime)
	defer cancel()
	index, err := n.store.Propose(ctx, ch)
	if err != nil {
		return admin.Change{}, proposeError(err)
	}
	return n.awaitSites(index), nil
}

func proposeError(err error) error {
	var rej *raftstore.Rejection
	switch {
	case errors.As(err, &rej):
		status := map[string]int{"missing": http.StatusNotFound, "invalid": http.StatusBadRequest}
		code, ok := status[rej.Code]
		if !ok {
			code = http.StatusConflict
		}
		return admin.Errorf(code, "", "%s", rej.Message)
	case errors.Is(err, raftstore.ErrNoQuorum) && !errors.Is(err, raftstore.ErrUnknown):
		return admin.Errorf(http.StatusServiceUnavailable,
			"changes need most of the nodes; `msgw status` says which are not reachable. Mail, DNS and hand-over go on without",
			"%v", err)
	}
	// Made or on its way, or not: nobody knows here.
	return admin.Errorf(http.StatusGatewayTimeout, "look with `msgw status` or `msgw mailbox list` before you try again", "%v", err)
}

// keepPassword gives a generated password along with an outcome that is not known:
// if the change was made, it is the only key.
func keepPassword(err error, id, generated string) error {
	var e *admin.Error
	if generated != "" && errors.As(err, &e) && e.Status == http.StatusGatewayTimeout {
		e.ID, e.Password = id, generated
	}
	return err
}

// awaitSites waits a while until the sites have a command in their files.
func (n *Node) awaitSites(index uint64) admin.Change {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c := admin.Change{Applied: []string{}, Missing: []string{}}
	sites := n.store.State().Sites()
	has := make([]bool, len(sites))
	var wg sync.WaitGroup
	for i, name := range sites {
		wg.Go(func() {
			for ctx.Err() == nil {
				p, err := n.store.Position(), error(nil)
				if name != n.id.Name {
					p, err = peerCalls{n}.Position(ctx, name)
				}
				if has[i] = err == nil && p.Index >= index; has[i] || errors.Is(err, raftstore.ErrNotSent) {
					return
				}
				select {
				case <-time.After(50 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
	for i, name := range sites {
		if has[i] {
			c.Applied = append(c.Applied, name)
		} else {
			c.Missing = append(c.Missing, name)
		}
	}
	return c
}

// Status reports what this node knows of itself and of the others.
func (n operator) Status(ctx context.Context) (admin.Status, error) {
	s, st, own := n.store.State(), n.store.Status(), n.report()
	out := admin.Status{Node: n.id.Name, Role: string(n.id.Role), Version: n.version, Cluster: n.id.Cluster, Zone: s.Zone.Name,
		Epoch: s.Epoch.Number, EpochID: s.Epoch.ID, Revision: s.Revision, Applied: st.Applied, Leader: st.Leader, Quorum: st.Quorum,
		Voters: st.Voters, Accepting: own.Accepting && !n.witness, Reason: own.Reason, Drained: own.Drained, Drain: own.Drain, Waiting: own.Waiting,
		Copies: own.Copies, Peers: n.askPeers(ctx, s), Certs: n.certificates(), MX: []admin.MX{}, Trouble: []string{}}
	if n.zone != nil {
		out.MX = n.zone.snap.Load().mx()
	}
	trouble := func(format string, args ...any) { out.Trouble = append(out.Trouble, fmt.Sprintf(format, args...)) }
	if st.Err != nil {
		trouble("configuration: %v", st.Err)
	}
	if !st.Quorum {
		trouble("no quorum: the configuration cannot be changed; mail, DNS and hand-over go on")
	}
	out.Trouble = append(out.Trouble, n.lineageTrouble(st)...)
	if own.Reason != "" && n.lineage.formerly() == "" {
		trouble("this node accepts no mail: %s", own.Reason)
	}
	for _, p := range out.Peers {
		switch {
		case !p.Reachable && n.lineage.formerly() != "":
		case !p.Reachable:
			trouble("%s is not reachable: %s", p.Name, p.Error)
		case p.Role == string(raftstore.Site) && !p.Accepting:
			trouble("%s accepts no mail: %s", p.Name, p.Reason)
		}
	}
	if !n.witness {
		out.Trouble = append(out.Trouble, copyTrouble(own.Copies)...)
		out.Trouble = append(out.Trouble, n.restrictedTrouble()...)
		out.Trouble = append(out.Trouble, n.signingTrouble(s.Signing)...)
		out.Trouble = append(out.Trouble, n.quarantine.trouble()...)
		for _, d := range append(n.journal.Damaged(), n.held.Damaged()...) {
			trouble("damaged: %s at octet %d: %v", d.File, d.Offset, d.Err)
		}
		if err := n.held.Err(); err != nil {
			trouble("no copies can be kept for the other site: %v", err)
		}
		if n.journal.Low() {
			trouble("the disk of %s fills up", n.cfg.State)
		}
	}
	if n.health.Isolated() {
		trouble("this node is cut off: neither another node nor an anchor answers")
	}
	for _, m := range out.MX {
		if m.External && m.State == string(health.Down) {
			trouble("the exchange %s is down: %s", m.Host, m.Reason)
		}
	}
	if s.Content.MTASTS.Mode == raftstore.STSEnforce {
		for _, site := range untrusted(s, current(s, n.serves())) {
			trouble("MTA-STS enforce: %s is not known to serve a publicly trusted certificate; senders that hold the policy send it no mail", site)
		}
	}
	for _, c := range out.Certs {
		if c.Trouble != "" {
			trouble("certificate for %s: %s", strings.Join(c.Names, ", "), c.Trouble)
		}
	}
	return out, nil
}

// askPeers asks every other node for its report.
func (n *Node) askPeers(ctx context.Context, s *raftstore.State) []admin.Peer {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	peers := []admin.Peer{}
	for _, node := range s.SortedNodes() {
		if node.Name != n.id.Name {
			peers = append(peers, admin.Peer{Name: node.Name, Role: string(node.Role), Address: node.Peer})
		}
	}
	var wg sync.WaitGroup
	for i := range peers {
		wg.Go(func() {
			p := &peers[i]
			r, err := n.ask(ctx, p.Name)
			if err != nil {
				p.Error = err.Error()
				return
			}
			p.Reachable, p.Epoch, p.EpochID, p.Applied = true, r.Epoch.Number, r.Epoch.ID, r.Position.Index
			p.Drained, p.Drain = r.Drained, r.Drain
			if p.Role == string(raftstore.Site) {
				p.Accepting, p.Reason, p.Waiting, p.Copies = r.Accepting, r.Reason, &r.Waiting, r.Copies
			}
		})
	}
	wg.Wait()
	return peers
}

// SetWeight changes a site's share.
func (n operator) SetWeight(ctx context.Context, node string, weight uint32) (admin.Change, error) {
	return n.change(ctx, raftstore.SetWeight{Node: node, Weight: weight})
}

// CA returns the certificate of the appliance's own CA, PEM.
func (n operator) CA(context.Context) (string, error) { return n.store.State().CA.Certificate, nil }

// SetACME changes where certificates come from.
func (n operator) SetACME(ctx context.Context, a admin.ACME) (admin.Change, error) {
	if err := checkACME(n.store.State(), raftstore.ACME(a)); err != nil {
		return admin.Change{}, err
	}
	return n.change(ctx, raftstore.SetACME{ACME: raftstore.ACME(a)})
}

// maxInviteLife bounds how long an invitation stays open.
const maxInviteLife = 7 * 24 * time.Hour

// Invite makes a token for one join.
func (n operator) Invite(ctx context.Context, r admin.Invite) (admin.Invitation, error) {
	role := raftstore.Role(r.Role)
	s := n.store.State()
	old, ok := s.Nodes[r.Replaces]
	if ok {
		role = old.Role
	}
	switch {
	case r.Replaces != "" && !ok:
		return admin.Invitation{}, admin.Errorf(http.StatusNotFound, "`msgw node list` shows them", "no node is named %s", r.Replaces)
	case r.Replaces == n.id.Name:
		return admin.Invitation{}, admin.Errorf(http.StatusConflict, "ask another node", "this node is %s, and it lives", r.Replaces)
	case role != raftstore.Site && role != raftstore.Witness:
		return admin.Invitation{}, admin.Errorf(http.StatusBadRequest, "", "role %q: expected site or witness", r.Role)
	case r.Life <= 0 || r.Life > maxInviteLife:
		return admin.Invitation{}, admin.Errorf(http.StatusBadRequest, "", "life %v: expected more than 0 and at most %v", r.Life, maxInviteLife)
	}
	if r.Replaces != "" {
		if _, err := n.ask(ctx, r.Replaces); err == nil {
			return admin.Invitation{}, admin.Errorf(http.StatusConflict, "stop it first if a new machine is to take its place", "%s lives: it answers on its peer port", r.Replaces)
		}
	}
	t := token{Invite: randomHex(8), Secret: randomHex(16), CA: fingerprint(n.members), Role: role}
	for _, name := range s.Sites() {
		if name != r.Replaces {
			t.Peers = append(t.Peers, s.Nodes[name].Peer)
		}
	}
	expires := time.Now().Add(r.Life).UTC()
	if _, err := n.change(ctx, raftstore.AddInvite{Invite: raftstore.Invite{ID: t.Invite, Secret: secretHash(t.Secret), Role: role, Expires: expires, Replaces: r.Replaces, ReplacesID: old.ID}}); err != nil {
		return admin.Invitation{}, err
	}
	return admin.Invitation{Token: t.String(), Role: string(role), Expires: expires}, nil
}
