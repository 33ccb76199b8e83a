package node

import (
	"fmt"
	"reflect"
	"slices"

	"msgw/internal/seal"
	"msgw/raftstore"
)

// before returns the configuration that this node had when its lineage parted from
// another one, which it kept aside then; nil if there is none.
func (n *Node) before(s, theirs *raftstore.State) *raftstore.State {
	base, err := raftstore.LoadArchived(n.cfg.State, parted(s.Line(), theirs.Line()))
	if err != nil {
		n.log.Info("what this node has changed is not told from what the others have: its configuration of before is not at hand", "err", err)
		return nil
	}
	return base
}

// parted returns the first epoch of own that the other lineage has not. Several may have
// begun since.
func parted(own, other raftstore.Line) raftstore.Epoch {
	for _, e := range own.Lineage {
		if e.Epoch != other.Epoch && !slices.ContainsFunc(other.Lineage, func(o raftstore.EpochStart) bool { return o.Epoch == e.Epoch || o.Parent == e.Epoch }) {
			return e.Epoch
		}
	}
	return own.Epoch
}

// differences lists what own has that theirs has not, as an operator would change it.
// base is what both come from: what only theirs has changed is left out. Without it
// every difference is listed.
func differences(own, theirs, base *raftstore.State) (list []string) {
	d := differ{own: own, theirs: theirs, base: base}
	d.mailboxes()
	d.nodes()
	if own.ACME != theirs.ACME && (base == nil || own.ACME != base.ACME) {
		directory := own.ACME.Directory
		if directory == "" {
			directory = "none"
		}
		d.say("ACME directory %s: `msgw acme`", directory)
	}
	if own.Copies != theirs.Copies && (base == nil || own.Copies != base.Copies) {
		d.say("settings of the copies %+v: `msgw copies`", own.Copies)
	}
	if own.Zone != theirs.Zone && (base == nil || own.Zone != base.Zone) {
		d.say("zone settings %+v", own.Zone)
	}
	if !sameContent(own.Content, theirs.Content) && (base == nil || !sameContent(own.Content, base.Content)) {
		d.say("what the zone holds besides the nodes: `msgw dns set` shows it")
	}
	d.signing()
	return d.list
}

// signing names the keys that are given up: where the parent has a DS of one, resolvers that
// validate refuse the zone.
func (d *differ) signing() {
	has := func(s *raftstore.State, k raftstore.SigningKey) bool {
		return s != nil && slices.ContainsFunc(s.Signing.Keys, func(o raftstore.SigningKey) bool { return o.Public == k.Public })
	}
	for _, k := range d.own.Signing.Keys {
		if !has(d.theirs, k) && !has(d.base, k) {
			d.say("the zone was signed with a key of its own, which is given up: if the parent zone has the DS %s, replace or remove it at once; `msgw dns check` shows what is expected there", dsOf(d.own.Zone.Name, k))
		}
	}
	if d.own.Signing.Phase == raftstore.Unsigned && d.theirs.Signing.Phase != raftstore.Unsigned && d.base != nil && d.base.Signing.Phase != raftstore.Unsigned {
		d.say("the zone was not signed any more: `msgw dns sign off`")
	}
}

// sameContent compares what is in the zone, not how often it was changed.
func sameContent(a, b raftstore.Content) bool {
	a.Version, b.Version = 0, 0
	return reflect.DeepEqual(a, b)
}

type differ struct {
	own, theirs, base *raftstore.State
	list              []string
}

func (d *differ) say(format string, args ...any) {
	d.list = append(d.list, fmt.Sprintf(format, args...))
}

func (d *differ) mailboxes() {
	var ids []string
	for id := range d.own.Mailboxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		own := d.own.Mailboxes[id]
		theirs, there := d.theirs.Mailboxes[id]
		var base raftstore.Mailbox
		known := false
		if d.base != nil {
			base, known = d.base.Mailboxes[id]
		}
		if !there {
			if known {
				d.say("mailbox %s was forgotten there; it is taken along, keys and all", id)
			} else {
				d.say("mailbox %s was created; it is taken along, keys and all", id)
			}
			continue
		}
		ours := func(differs, changed bool) bool { return differs && (!known || changed) }
		if ours(own.Status != theirs.Status, own.Status != base.Status) {
			d.say("mailbox %s is %s here and %s there: %s", id, own.Status, theirs.Status, statusCommand(id, own.Status))
		}
		if ours(own.Policy != theirs.Policy, own.Policy != base.Policy) {
			d.say("mailbox %s: `msgw mailbox policy %s %s`", id, id, orDefaultPolicy(own.Policy))
		}
		if ours(!sameKeys(own.Keys, theirs.Keys), !sameKeys(own.Keys, base.Keys)) {
			d.say("mailbox %s: its password was changed; that of the other site is the one from now on, and its keys of here are kept to read what they sealed: `msgw mailbox passwd %s`", id, id)
		}
	}
	if d.base == nil {
		return
	}
	var gone []string
	for id := range d.base.Mailboxes {
		_, here := d.own.Mailboxes[id]
		if _, there := d.theirs.Mailboxes[id]; !here && there {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	for _, id := range gone {
		d.say("mailbox %s was forgotten: it is there again", id)
	}
}

// sameKeys compares what the keys are and how they are wrapped.
func sameKeys(a, b []seal.Key) bool {
	return slices.EqualFunc(a, b, func(x, y seal.Key) bool {
		return x.ID == y.ID && x.State == y.State && string(x.Wrap.Ciphertext) == string(y.Wrap.Ciphertext)
	})
}

func statusCommand(id string, s raftstore.MailboxStatus) string {
	verb := map[raftstore.MailboxStatus]string{raftstore.Active: "activate", raftstore.Suspended: "suspend", raftstore.Retired: "delete"}[s]
	return fmt.Sprintf("`msgw mailbox %s %s`", verb, id)
}

func orDefaultPolicy(p raftstore.Policy) string {
	if p == "" {
		return "default"
	}
	return string(p)
}

func (d *differ) nodes() {
	for _, own := range d.own.SortedNodes() {
		theirs, there := d.theirs.Nodes[own.Name]
		var base raftstore.Node
		known := false
		if d.base != nil {
			base, known = d.base.Nodes[own.Name]
		}
		switch {
		case !there && !known:
			d.say("node %s had joined: it has to join again", own.Name)
		case there && known && own.SealTo != base.SealTo && own.SealTo != theirs.SealTo:
			d.say("node %s was replaced by another machine: it has to join again, with `msgw invite --replace %s`", own.Name, own.Name)
		}
		if there && own.Weight != theirs.Weight && (!known || own.Weight != base.Weight) {
			d.say("`msgw node weight %s %d`", own.Name, own.Weight)
		}
	}
	if d.base == nil {
		return
	}
	for _, b := range d.base.SortedNodes() {
		_, here := d.own.Nodes[b.Name]
		if _, there := d.theirs.Nodes[b.Name]; !here && there {
			d.say("node %s was removed: `msgw node remove %s`", b.Name, b.Name)
		}
	}
}
