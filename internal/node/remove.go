package node

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"msgw/internal/admin"
	"msgw/internal/shadow"
	"msgw/raftstore"
)

// leaveTime is how long a site that is being removed takes no mail: until it has heard
// that it is removed, or that failed.
const leaveTime = 30 * time.Second

// RemoveNode takes the next step towards the end of a membership: drain the site, wait
// until all that it owns has its copy and is fetched, remove it. Whoever asks calls again
// until it is done.
func (n operator) RemoveNode(ctx context.Context, r admin.RemoveNode) (admin.Removal, error) {
	s := n.store.State()
	node, ok := s.Nodes[r.Name]
	switch {
	case !ok:
		if f, was := formerName(s, r.Name); was {
			return admin.Removal{}, admin.Errorf(http.StatusNotFound, "nothing is to be done", "%s was %s at %s", f.Name, f.Why, f.At.Local().Format(time.DateTime))
		}
		return admin.Removal{}, admin.Errorf(http.StatusNotFound, "`msgw node list` shows them", "no node is named %s", r.Name)
	case node.Role == raftstore.Site && len(s.Sites()) == 1:
		return admin.Removal{}, admin.Errorf(http.StatusConflict, "", "%s is the only site", r.Name)
	case n.witness:
		return admin.Removal{}, admin.Errorf(http.StatusConflict, "ask a site", "a witness cannot seal the CA's key anew")
	case r.Name == n.id.Name:
		return admin.Removal{}, admin.Errorf(http.StatusConflict, "ask the node that stays: what waits here is to be handed over there", "this node is %s", r.Name)
	}
	report, err := n.ask(ctx, r.Name)
	switch {
	case err != nil && !r.Lost && node.Role == raftstore.Site:
		return admin.Removal{}, admin.Errorf(http.StatusServiceUnavailable, "if it does not come back, add --lost: messages that only it has are lost then", "%s cannot be asked: %v", r.Name, err)
	case err == nil && r.Lost:
		return admin.Removal{}, admin.Errorf(http.StatusConflict, "leave --lost away", "%s lives: it answers on its peer port", r.Name)
	}
	if err == nil && node.Role == raftstore.Site {
		if waiting, err := n.emptied(ctx, r, report); err != nil || waiting != "" {
			return admin.Removal{Waiting: waiting}, err
		}
	}
	if waiting, err := n.unvote(ctx, node); err != nil || waiting != "" {
		return admin.Removal{Waiting: waiting}, err
	}
	if err == nil && node.Role == raftstore.Site {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, leaveTime-10*time.Second) // while it takes no mail for certain
		defer cancel()
		if err := (peerCalls{n.Node}).call(ctx, r.Name, "/leave", struct{}{}, nil); err != nil {
			return admin.Removal{}, fmt.Errorf("%s cannot be told: %w", r.Name, err)
		}
		// Mail may have come in since the first look.
		if report, err = n.ask(ctx, r.Name); err != nil {
			return admin.Removal{}, fmt.Errorf("%s cannot be asked: %w", r.Name, err)
		}
		if waiting, err := n.emptied(ctx, r, report); err != nil || waiting != "" {
			return admin.Removal{Waiting: waiting}, err
		}
	}
	s = n.store.State() // a machine may have taken a site's place meanwhile
	sealed, err := n.resealCA(s, raftstore.Node{}, r.Name)
	if err != nil {
		return admin.Removal{}, err
	}
	keys, err := n.resealSigning(s, raftstore.Node{}, r.Name)
	if err != nil {
		return admin.Removal{}, err
	}
	if _, err := n.change(ctx, raftstore.RemoveNode{Name: node.Name, ID: node.ID, CA: sealed, Signing: keys}); err != nil {
		return admin.Removal{}, err
	}
	out := admin.Removal{Done: true}
	if node.Role == raftstore.Site {
		if err := n.takeOverHeld(); err != nil {
			return out, err
		}
		out.Adopted = total(n.held.Waiting()).Messages
	}
	n.log.Warn("node removed", "node", r.Name, "lost", r.Lost, "handed_over_here", out.Adopted)
	return out, nil
}

// unvote takes the vote of a node that leaves away, and says what is still waited for.
func (n operator) unvote(ctx context.Context, node raftstore.Node) (waiting string, err error) {
	if !node.Leaving {
		if _, err := n.change(ctx, raftstore.LeaveNode{Name: node.Name, ID: node.ID}); err != nil {
			return "", err
		}
	}
	for end := time.Now().Add(proposeTime); ; {
		st := n.store.Status()
		if st.Quorum && !slices.Contains(st.Voters, node.Name) && !slices.Contains(st.Learners, node.Name) {
			return "", nil
		}
		if time.Now().After(end) {
			return node.Name + " still votes", nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func formerName(s *raftstore.State, name string) (raftstore.Former, bool) {
	for i := len(s.Former) - 1; i >= 0; i-- {
		if f := s.Former[i]; f.Name == name && f.Why == "removed" {
			return f, true
		}
	}
	return raftstore.Former{}, false
}

// emptied drains a site that is to leave, and says what is still waited for.
func (n operator) emptied(ctx context.Context, r admin.RemoveNode, rep report) (waiting string, err error) {
	if !rep.Drained {
		_, err := n.SetDrain(ctx, r.Name, admin.SetDrain{Drained: true})
		return r.Name + " is drained now", err
	}
	c := rep.Copies
	switch {
	case c == nil:
		return "", fmt.Errorf("%s says nothing of its copies", r.Name)
	case c.State != string(shadow.Sync) || c.Single > 0:
		return fmt.Sprintf("%d messages of %s have one copy; its state is %s", c.Single, r.Name, c.State), nil
	case rep.Waiting.Messages > 0 && !r.Adopt:
		return fmt.Sprintf("%d messages wait at %s until the archive has fetched them", rep.Waiting.Messages, r.Name), nil
	}
	return "", nil
}

// takeOverHeld hands the copies over here that no other site owns any more.
func (n *Node) takeOverHeld() error {
	if _, ok := n.other(); ok || n.witness {
		return nil
	}
	if adopted, _, _ := n.holder.Adopted(); adopted || total(n.held.Waiting()).Messages == 0 {
		return nil
	}
	return n.holder.Adopt()
}

// leave makes this node take no mail for a while: it is being removed. When it returns
// nil, everything that senders were told was taken is in the journal.
func (n *Node) leave(ctx context.Context) error {
	n.leaving.Store(time.Now().Add(leaveTime).UnixNano())
	n.log.Warn("this node is being removed: it takes no mail")
	for !n.committing.TryLock() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("a message is being stored at this moment: %w", ctx.Err())
		}
	}
	n.committing.Unlock()
	n.leaving.Store(time.Now().Add(leaveTime).UnixNano())
	return nil
}

// gone says why this node takes no mail as a member, or nothing.
func (n *Node) gone() string {
	if why := n.lineage.formerly(); why != "" {
		return "this node is no member of the appliance any more: " + why
	}
	if time.Now().UnixNano() < n.leaving.Load() {
		return "this node is being removed"
	}
	return ""
}
