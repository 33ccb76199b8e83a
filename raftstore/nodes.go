package raftstore

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	"msgw/internal/seal"
)

// JoinNode adds a member and uses up its invitation.
type JoinNode struct {
	Invite string `json:"invite"`
	Node   Node   `json:"node"`
	CA     CA     `json:"ca"` // sealed to the new set of sites
	// Signing is the zone's keys, sealed to them too.
	Signing SealedSigning `json:"signing,omitzero"`
}

func (JoinNode) op() string { return "node.join" }
func (ch JoinNode) apply(s *State, c Command) error {
	i, ok := s.Invites[ch.Invite]
	switch {
	case !ok:
		return rejectf("missing", "this invitation is not open: it was used, or it never was")
	case i.Expires.Before(c.At):
		return rejectf("conflict", "this invitation expired at %s", i.Expires.Format(time.RFC3339))
	case i.Role != ch.Node.Role:
		return rejectf("invalid", "this invitation is for a %s", i.Role)
	}
	if i.Replaces != "" {
		return ch.replace(s, i, c)
	}
	if err := s.checkNode(ch.Node); err != nil {
		return err
	}
	if _, ok := s.Nodes[ch.Node.Name]; ok {
		return rejectf("exists", "a node named %s is a member already; a machine that takes its place needs `msgw invite --replace %[1]s`", ch.Node.Name)
	}
	if sites := s.Sites(); ch.Node.Role == Site && len(sites) == 2 {
		return rejectf("exists", "there are two sites already, %s and %s", sites[0], sites[1])
	}
	if ch.Node.Role == Witness {
		for _, n := range s.Nodes {
			if n.Role == Witness {
				return rejectf("exists", "%s is the witness already", n.Name)
			}
		}
	}
	s.Nodes[ch.Node.Name] = ch.Node
	return ch.admit(s)
}

// replace gives the new node the place of another one: its name, host name and weight.
func (ch JoinNode) replace(s *State, i Invite, c Command) error {
	old, ok := s.Nodes[i.Replaces]
	switch {
	case !ok || old.ID != i.ReplacesID:
		return rejectf("conflict", "%s is not the node any more that this invitation was to replace", i.Replaces)
	case ch.Node.Name != old.Name:
		return rejectf("invalid", "this invitation is for a node named %s, not %s", old.Name, ch.Node.Name)
	}
	n := ch.Node
	n.Host, n.Weight = old.Host, old.Weight
	if err := s.checkNode(n); err != nil {
		return err
	}
	s.Nodes[n.Name] = n
	s.retire(old, "replaced", c.At)
	return ch.admit(s)
}

// admit uses the invitation up and takes over the CA.
func (ch JoinNode) admit(s *State) error {
	delete(s.Invites, ch.Invite)
	if !slices.Equal(ch.CA.SealedTo, s.Sites()) {
		return rejectf("conflict", "another node joined at the same time; try again")
	}
	s.CA = ch.CA
	return s.reseal(ch.Signing)
}

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// CheckNodeName says whether a name can be a node's: it becomes a DNS label.
func CheckNodeName(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("node name %q: expected 1 to 32 lower-case letters, digits and inner hyphens", name)
	}
	return nil
}

// checkNode looks for conflicts with other members.
func (s *State) checkNode(n Node) error {
	if err := CheckNodeName(n.Name); err != nil {
		return rejectf("invalid", "%v", err)
	}
	if n.ID == "" || n.Peer == "" {
		return rejectf("invalid", "node %s has no server id or no peer address", n.Name)
	}
	for _, o := range s.Nodes {
		switch {
		case o.Name == n.Name:
		case o.ID == n.ID:
			return rejectf("exists", "%s has the same server id", o.Name)
		case o.Peer == n.Peer:
			return rejectf("exists", "%s has the peer address %s", o.Name, n.Peer)
		case n.Host != "" && o.Host == n.Host:
			return rejectf("exists", "%s has the host name %s", o.Name, n.Host)
		}
	}
	return s.contentFits(n)
}

// UpdateNode replaces what a node says of itself. Weight, role, id and key stay.
type UpdateNode struct {
	Node Node `json:"node"`
}

func (UpdateNode) op() string { return "node.update" }
func (ch UpdateNode) apply(s *State, _ Command) error {
	n, ok := s.Nodes[ch.Node.Name]
	if !ok || n.ID != ch.Node.ID {
		return rejectf("missing", "node %s is not a member", ch.Node.Name)
	}
	if err := s.checkNode(ch.Node); err != nil {
		return err
	}
	n.Host, n.Peer, n.V4, n.V6, n.SMTPPort, n.DNSPort = ch.Node.Host, ch.Node.Peer, ch.Node.V4, ch.Node.V6, ch.Node.SMTPPort, ch.Node.DNSPort
	s.Nodes[n.Name] = n
	return nil
}

// MaxWeight of a site.
const MaxWeight = 1000

// SetWeight changes a site's share of the mail.
type SetWeight struct {
	Node   string `json:"node"`
	Weight uint32 `json:"weight"`
}

func (SetWeight) op() string { return "node.weight" }
func (ch SetWeight) apply(s *State, _ Command) error {
	n, ok := s.Nodes[ch.Node]
	switch {
	case !ok:
		return rejectf("missing", "no node is named %s", ch.Node)
	case n.Role != Site:
		return rejectf("invalid", "%s is a %s: it takes no mail and has no weight", ch.Node, n.Role)
	case ch.Weight > MaxWeight:
		return rejectf("invalid", "weight %d: expected 0 to %d", ch.Weight, MaxWeight)
	}
	n.Weight = ch.Weight
	s.Nodes[n.Name] = n
	return nil
}

// retire remembers that a server id is no member's any more.
func (s *State) retire(n Node, why string, at time.Time) {
	s.Former = append(slices.Clone(s.Former), Former{n.Name, n.ID, why, at})
	if len(s.Former) > keepFormer {
		s.Former = slices.Clone(s.Former[len(s.Former)-keepFormer:])
	}
}

// keepFormer bounds State.Former.
const keepFormer = 32

// FormerID returns what became of a server id that was a member's once.
func (s *State) FormerID(id string) (Former, bool) {
	i := slices.IndexFunc(s.Former, func(f Former) bool { return f.ID == id })
	if i < 0 {
		return Former{}, false
	}
	return s.Former[i], true
}

// RejoinNode takes a member back in under a new server id: it has an older epoch, or has
// renounced its vote. What it holds of mailboxes that are not known here comes along, so
// that no mail under their keys is lost.
type RejoinNode struct {
	Name string `json:"name"`
	Old  string `json:"old"` // server id that it had
	New  string `json:"new"`
	// Revision that it served: the zone's serial must not fall.
	Revision  uint32    `json:"revision"`
	Mailboxes []Mailbox `json:"mailboxes,omitempty"`
}

func (RejoinNode) op() string { return "node.rejoin" }
func (ch RejoinNode) apply(s *State, c Command) error {
	n, ok := s.Nodes[ch.Name]
	switch {
	case !ok:
		return rejectf("missing", "%s was removed", ch.Name)
	case n.ID != ch.Old || ch.New == "":
		return rejectf("conflict", "another machine has taken the place of %s", ch.Name)
	}
	if _, taken := s.NodeByID(ch.New); taken {
		return rejectf("exists", "the server id %s is taken", ch.New)
	}
	s.retire(n, "rejoined", c.At)
	n.ID, n.Leaving = ch.New, false
	s.Nodes[n.Name] = n
	s.Revision = max(s.Revision, ch.Revision)
	for _, m := range ch.Mailboxes {
		if err := s.merge(m); err != nil {
			return err
		}
	}
	return nil
}

// merge adds a mailbox, or those of its keys that are not known here.
func (s *State) merge(m Mailbox) error {
	if err := CheckMailboxID(m.ID); err != nil {
		return rejectf("invalid", "%v", err)
	}
	have, ok := s.Mailboxes[m.ID]
	if !ok {
		s.Mailboxes[m.ID] = m
		return nil
	}
	keys := slices.Clone(have.Keys)
	for _, k := range m.Keys {
		if !slices.ContainsFunc(keys, func(o seal.Key) bool { return o.ID == k.ID && o.Recipient == k.Recipient }) {
			k.State = seal.DecryptOnly
			keys = append(keys, k)
		}
	}
	if len(keys) > len(have.Keys) {
		have.Keys, have.Version = keys, have.Version+1
		s.Mailboxes[m.ID] = have
	}
	return nil
}

// member returns the node of a name if it still has a server id.
func (s *State) member(name, id string) (Node, error) {
	n, ok := s.Nodes[name]
	switch {
	case !ok:
		return n, rejectf("missing", "no node is named %s", name)
	case n.ID != id:
		return n, rejectf("conflict", "%s was changed at the same time; try again", name)
	}
	return n, nil
}

// LeaveNode takes a member's vote away, the first half of its removal. It is still a
// member: a vote is taken away with its holder in reach, and counted without it then.
type LeaveNode struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

func (LeaveNode) op() string { return "node.leave" }
func (ch LeaveNode) apply(s *State, _ Command) error {
	n, err := s.member(ch.Name, ch.ID)
	if err != nil {
		return err
	}
	if n.Role == Site && len(s.Sites()) == 1 {
		return rejectf("conflict", "%s is the only site", ch.Name)
	}
	for _, o := range s.Nodes {
		if o.Leaving && o.Name != n.Name {
			return rejectf("conflict", "%s is being removed; finish that first", o.Name)
		}
	}
	for _, ns := range s.Content.NameServers {
		if ns.Site == n.Name || ns.Name == n.Host {
			return rejectf("conflict", "%s is a name server of the zone with the addresses of %s; name others with `msgw dns set --ns` first", ns.Name, n.Name)
		}
	}
	n.Leaving = true
	s.Nodes[n.Name] = n
	return nil
}

// RemoveNode ends a membership. The proposer has seen that nothing is lost with it.
type RemoveNode struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	CA   CA     `json:"ca"` // sealed to the sites that are left
	// Signing is the zone's keys, sealed to them too.
	Signing SealedSigning `json:"signing,omitzero"`
}

func (RemoveNode) op() string { return "node.remove" }
func (ch RemoveNode) apply(s *State, c Command) error {
	n, err := s.member(ch.Name, ch.ID)
	if err != nil {
		return err
	}
	if !n.Leaving {
		return rejectf("conflict", "%s still votes", ch.Name)
	}
	delete(s.Nodes, n.Name)
	s.retire(n, "removed", c.At)
	if !slices.Equal(ch.CA.SealedTo, s.Sites()) {
		return rejectf("conflict", "the members were changed at the same time; try again")
	}
	s.CA = ch.CA
	return s.reseal(ch.Signing)
}
