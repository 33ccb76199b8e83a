package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"msgw/internal/ca"
	"msgw/internal/durable"
	"msgw/internal/seal"
	"msgw/raftstore"
)

// lineage is what this node knows of where its configuration stands among the others'.
type lineage struct {
	path  string        // of what a former member remembers
	every time.Duration // between two looks

	mu     sync.Mutex
	lines  map[string]seenLine // by node, as they last said
	former string              // why this node is no member any more; kept in a file
}

type seenLine struct {
	line      raftstore.Line
	renounced bool
	you       string // the server id that it knows this node by
	at        time.Time
}

const (
	formerFile = "former.json"
	// rejoinedFile lists what a node that gave way had changed.
	rejoinedFile = "rejoined.txt"
)

func openLineage(dir string) (*lineage, error) {
	l := &lineage{path: filepath.Join(dir, formerFile), every: 2 * time.Second, lines: map[string]seenLine{}}
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l.former)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", formerFile, err)
	}
	return l, nil
}

func (l *lineage) note(name string, r report) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines[name] = seenLine{raftstore.Line{Epoch: r.Epoch, Index: r.Position.Index, Hash: r.Position.Hash, Lineage: r.Lineage}, r.Renounced != "", r.You, time.Now()}
}

// seen returns what a node has said lately.
func (l *lineage) seen(name string) (seenLine, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.lines[name]
	return s, ok && time.Since(s.at) < 5*l.every
}

// heard returns when a node last said anything; zero if it has not since the start.
func (l *lineage) heard(name string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines[name].at
}

// formerly returns why this node is no member any more, or nothing.
func (l *lineage) formerly() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.former
}

// becomeFormer remembers for good that this node is no member any more: it takes no mail
// from now on, and hands over what it has.
func (n *Node) becomeFormer(why string) {
	if n.lineage.formerly() != "" {
		return
	}
	n.log.Error("this node is no member of the appliance any more; it takes no mail, and hands over what waits here", "why", why)
	b, err := json.Marshal(why)
	if err == nil {
		err = durable.ReplaceFile(n.lineage.path, b)
	}
	if err != nil {
		n.log.Error("that cannot be kept on the disk", "err", err)
	}
	n.lineage.mu.Lock()
	n.lineage.former = why
	n.lineage.mu.Unlock()
}

// keepLineage follows the configuration of the appliance where others have broken the
// glass, and ends the connections of what is over. It needs no quorum.
func (n *Node) keepLineage(ctx context.Context, prune func()) error {
	t := time.NewTicker(n.lineage.every)
	defer t.Stop()
	for {
		changed := n.store.Changed()
		prune()
		if _, ok := n.store.State().Nodes[n.id.Name]; !ok {
			n.becomeFormer("it was removed")
		}
		if err := n.takeOverHeld(); err != nil {
			n.log.Error("what a site that was removed had is not handed over here yet", "err", err)
		}
		if name, _ := n.newer(); name != "" {
			if err := n.rejoinNewer(ctx); err != nil && ctx.Err() == nil {
				n.log.Warn("this node cannot rejoin yet; it is tried again", "at", name, "err", err)
				changed = nil // each attempt changes something here
			}
		}
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// newer returns a site whose configuration continues this node's, and why this node is
// to rejoin there; nothing if there is none.
func (n *Node) newer() (name, why string) {
	s, ren := n.store.State(), n.store.Renounced()
	if n.store.Epoch() != s.Epoch || n.lineage.formerly() != "" {
		return "", ""
	}
	line := s.Line()
	for _, site := range s.Sites() {
		seen, ok := n.lineage.seen(site)
		if site == n.id.Name || !ok || seen.renounced {
			continue
		}
		switch line.Relate(seen.line) {
		case raftstore.Ancestor:
			return site, fmt.Sprintf("%s has gone on without it in epoch %s", site, seen.line.Epoch)
		case raftstore.Same:
			if ren != nil {
				return site, ren.Why
			}
			// What it knows is no older than what is known here.
			if seen.line.Index >= line.Index && seen.you != "" && seen.you != n.id.serverID() {
				return site, fmt.Sprintf("%v: to before it rejoined as %s", raftstore.ErrSetBack, seen.you)
			}
		}
	}
	return "", ""
}

// rejoinRequest is what a node says that asks to be taken in again.
type rejoinRequest struct {
	Name      string              `json:"name"`
	New       string              `json:"new"` // server id
	Why       string              `json:"why"`
	SealTo    string              `json:"seal_to"`
	Epoch     raftstore.Epoch     `json:"epoch"` // that it comes from
	Revision  uint32              `json:"revision"`
	Mailboxes []raftstore.Mailbox `json:"mailboxes"` // with keys that may not be known
	Request   string              `json:"request"`   // certificate request, PEM
}

// rejoinNewer rejoins where that is still due when nothing else changes this node's
// lineage: an operator may just have done it.
func (n *Node) rejoinNewer(ctx context.Context) error {
	n.rejoining.Lock()
	defer n.rejoining.Unlock()
	name, why := n.newer()
	if name == "" {
		return nil
	}
	return n.rejoin(ctx, name, why)
}

// rejoin makes this node a member of the lineage that a site has. What it votes ends
// for good first; its mail, and what it serves, go on. n.rejoining is held.
func (n *Node) rejoin(ctx context.Context, name, why string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	theirs, err := n.configurationOf(ctx, name)
	if err != nil {
		return err
	}
	if theirs.Cluster != n.id.Cluster {
		return fmt.Errorf("%s belongs to another appliance", name)
	}
	own := n.store.State()
	var list []string
	if own.Line().Relate(theirs.Line()) == raftstore.Fork { // else nothing of it is given up
		list = differences(own, theirs, n.before(own, theirs))
	}
	ren, err := n.store.Renounce(why)
	if err != nil {
		return err
	}
	own = n.store.State()
	csr, err := n.id.request()
	if err != nil {
		return err
	}
	r := rejoinRequest{Name: n.id.Name, New: ren.New, Why: ren.Why, SealTo: n.id.node.Recipient(), Epoch: own.Epoch, Revision: own.Revision,
		Mailboxes: unknownKeys(own, theirs), Request: csr}
	var ans joinAnswer
	if err := n.askStatus(ctx, own.Nodes[name].ID, "/rejoin", r, &ans); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if ans.State == nil {
		return fmt.Errorf("%s: an answer without a configuration", name)
	}
	if len(list) > 0 {
		text := fmt.Sprintf("%s: changes of %s that are not in the configuration of %s\n%s\n", time.Now().Format(time.RFC3339), n.id.Name, name, strings.Join(list, "\n"))
		if err := durable.ReplaceFile(filepath.Join(n.cfg.State, rejoinedFile), []byte(text)); err != nil {
			return err
		}
	}
	// The identity first: with the new one it can ask again.
	if err := n.id.rename(n.cfg.State, ren.New); err != nil {
		return err
	}
	if err := n.members.install(ans.Certificate, ans.State); err != nil {
		return err
	}
	if err := n.store.Rejoin(raftstore.Rejoin{ID: ren.New, State: ans.State}); err != nil {
		return err
	}
	n.log.Warn("this node has rejoined", "at", name, "epoch", ans.State.Epoch, "changes_given_up", len(list))
	return nil
}

// configurationOf asks a member of any epoch for its configuration. Mailbox keys in it
// are wrapped, and the CA's key is sealed.
func (n *Node) configurationOf(ctx context.Context, name string) (*raftstore.State, error) {
	node, ok := n.store.State().Nodes[name]
	if !ok {
		return nil, fmt.Errorf("no node is named %s", name)
	}
	s := &raftstore.State{}
	if err := n.askStatus(ctx, node.ID, "/configuration", struct{}{}, s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// unknownKeys returns the mailboxes of own that theirs lacks, or lacks keys of.
func unknownKeys(own, theirs *raftstore.State) (all []raftstore.Mailbox) {
	for id, m := range own.Mailboxes {
		have, ok := theirs.Mailboxes[id]
		if !ok || slices.ContainsFunc(m.Keys, func(k seal.Key) bool {
			return !slices.ContainsFunc(have.Keys, func(o seal.Key) bool { return o.ID == k.ID && o.Recipient == k.Recipient })
		}) {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b raftstore.Mailbox) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// asker returns who is at the other end of a call, and a refusal if it is no member any
// more.
func (n *Node) asker(ctx context.Context) (ca.Identity, error) {
	t, ok := ctx.Value(peerKey{}).(tls.ConnectionState)
	if !ok {
		return ca.Identity{}, errors.New("not over TLS")
	}
	id, err := ca.VerifyPeer(n.members.Root(), t.PeerCertificates, time.Now())
	if err != nil {
		return id, err
	}
	return id, standing(n.store.State(), id)
}

// standing returns nil for a member, and for one that was set back to before it rejoined;
// a formerError for who is no member any more. Who is not known at all may have joined
// since: this node may be the one that was set back, or has not heard of it yet.
func standing(s *raftstore.State, id ca.Identity) error {
	if _, member := s.NodeByID(id.ID); member {
		return nil
	}
	i := slices.IndexFunc(s.Former, func(f raftstore.Former) bool { return f.ID == id.ID })
	if i < 0 {
		return fmt.Errorf("%s (%s) is not known here", id.Node, id.ID)
	}
	// What became of that machine in the end: it may have rejoined, and then been replaced.
	last := s.Former[i]
	for _, f := range s.Former[i:] {
		if last.Why == "rejoined" && f.Name == last.Name {
			last = f
		}
	}
	if last.Why == "rejoined" {
		return nil
	}
	return &formerError{fmt.Sprintf("%s was %s at %s", last.Name, last.Why, last.At.Local().Format(time.DateTime))}
}

// formerError refuses who is no member any more.
type formerError struct{ text string }

func (e *formerError) Error() string { return e.text }

// formerStatus is the HTTP status of a formerError.
const formerStatus = http.StatusGone

// readmit takes a member in again that has an older epoch or has renounced its vote.
func (n *Node) readmit(ctx context.Context, r rejoinRequest) (joinAnswer, error) {
	id, err := n.asker(ctx)
	if err != nil {
		return joinAnswer{}, err
	}
	s := n.store.State()
	node, ok := s.Nodes[id.Node]
	switch {
	case n.witness:
		return joinAnswer{}, &raftstore.Rejection{Code: "invalid", Message: "a witness takes nobody in"}
	case r.Name != id.Node || !ok || node.SealTo != r.SealTo:
		return joinAnswer{}, &formerError{fmt.Sprintf("another machine has taken the place of %s", id.Node)}
	case n.store.Renounced() != nil:
		return joinAnswer{}, &raftstore.Rejection{Code: "conflict", Message: n.id.Name + " has renounced its own vote"}
	}
	if err := n.goOnWithout(ctx, r, s); err != nil {
		return joinAnswer{}, err
	}
	cert, err := n.issuePeer(ca.Identity{Cluster: n.id.Cluster, Node: r.Name, ID: r.New}, r.Request)
	if err != nil {
		return joinAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := n.store.Propose(ctx, raftstore.RejoinNode{Name: r.Name, Old: node.ID, New: r.New, Revision: r.Revision, Mailboxes: r.Mailboxes}); err != nil {
		return joinAnswer{}, err
	}
	n.log.Info("node taken in again", "node", r.Name, "why", r.Why, "id", r.New)
	return joinAnswer{cert, n.store.State()}, nil
}

// goOnWithout recovers this node if the only other voter has renounced its vote: it has
// said so itself, on its own disk, so nothing can be changed there any more, and all that
// it ever acknowledged is here.
func (n *Node) goOnWithout(ctx context.Context, r rejoinRequest, s *raftstore.State) error {
	if n.store.Epoch() != s.Epoch { // one that has begun is gone on with
		return n.store.Recover(ctx, "")
	}
	known := r.Epoch == s.Epoch || slices.ContainsFunc(s.Lineage, func(e raftstore.EpochStart) bool { return e.Parent == r.Epoch })
	if !known || !onlyVoters(n.store.Status().Voters, n.id.Name, r.Name) {
		return nil
	}
	// The quorum that there was a moment ago had its vote.
	for end := time.Now().Add(proposeTime); n.store.Status().Quorum && time.Now().Before(end); {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := n.store.Recover(ctx, fmt.Sprintf("%s votes no more: %s", r.Name, r.Why))
	if errors.Is(err, raftstore.ErrQuorum) {
		return nil
	}
	return err
}

// onlyVoters returns whether two nodes are all voters. One that does not vote itself may
// lack what the other one changed alone.
func onlyVoters(voters []string, self, other string) bool {
	return len(voters) == 2 && slices.Contains(voters, self) && slices.Contains(voters, other) && self != other
}
