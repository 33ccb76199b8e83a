package node

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"msgw/internal/admin"
	"msgw/internal/journal"
	"msgw/internal/peer"
	"msgw/raftstore"
)

// keepRetired is how long a deleted mailbox is kept after every site has heard of it: a
// transfer that had begun before may still be stored, and no transfer takes so long.
const keepRetired = 24 * time.Hour

// DeleteMailbox retires a mailbox that is suspended, and empty by the report of every
// site but one that is named as cut off and cannot be asked.
func (n operator) DeleteMailbox(ctx context.Context, id, cutOff string) (admin.Change, error) {
	m, err := n.find(id)
	if err != nil {
		return admin.Change{}, err
	}
	if err := n.checkCutOff(cutOff); err != nil {
		return admin.Change{}, err
	}
	if m.Status == raftstore.Active {
		return admin.Change{}, admin.Errorf(http.StatusConflict, "suspend it first: `msgw mailbox suspend "+m.ID+"`", "mailbox %s is active", m.ID)
	}
	const hint = "wait until it is back, or the mailbox could lose mail there; " +
		"if that takes too long, --cut-off deletes without it, and keeps what it takes until it hears of it"
	at := n.store.State().Index
	missing := slices.DeleteFunc(n.awaitSites(at).Missing, func(name string) bool { return name == cutOff })
	if len(missing) > 0 {
		return admin.Change{}, admin.Errorf(http.StatusServiceUnavailable, hint,
			"%s cannot say whether mailbox %s is empty there", strings.Join(missing, ", "), m.ID)
	}
	all, errs := n.askHoldings(ctx)
	if cutOff != "" && reached(errs[cutOff]) {
		return admin.Change{}, admin.Errorf(http.StatusConflict, "delete without --cut-off, as soon as it has every change", "%s is not cut off: it answers", cutOff)
	}
	for _, h := range n.describe(m, all, errs).Sites {
		if h.Site == cutOff {
			continue
		}
		r, err := n.ask(ctx, h.Site)
		if err != nil {
			h.Error = err.Error()
		}
		switch {
		case h.Error != "":
			return admin.Change{}, admin.Errorf(http.StatusServiceUnavailable, hint,
				"%s cannot say whether mailbox %s is empty there: %s", h.Site, m.ID, h.Error)
		case r.Damaged > 0:
			return admin.Change{}, admin.Errorf(http.StatusConflict, "`msgw status` there says where; what cannot be read may be this mailbox's",
				"the journal of %s is damaged", h.Site)
		case h.Messages > 0:
			return admin.Change{}, admin.Errorf(http.StatusConflict, "let the archive fetch them first",
				"mailbox %s has %d messages waiting at %s", m.ID, h.Messages, h.Site)
		case h.Copies > 0:
			return admin.Change{}, admin.Errorf(http.StatusConflict, "they go when the sites are in SYNC; `msgw status` shows it",
				"%s holds copies of %d messages of mailbox %s", h.Site, h.Copies, m.ID)
		}
	}
	c, err := n.change(ctx, raftstore.SetStatus{ID: m.ID, Status: raftstore.Retired})
	if err == nil {
		n.log.Info("mailbox deleted", "mailbox", m.ID, "cut_off", cutOff, "applied", c.Applied, "missing", c.Missing)
	}
	return c, err
}

func (n *Node) checkCutOff(name string) error {
	node, ok := n.store.State().Nodes[name]
	switch {
	case name == "":
	case !ok || node.Role != raftstore.Site:
		return admin.Errorf(http.StatusBadRequest, "`msgw node list` shows them", "cut-off %q: expected the name of a site", name)
	case name == n.id.Name:
		return admin.Errorf(http.StatusBadRequest, "name the site that cannot be asked", "cut-off %s: this node is it", name)
	}
	return nil
}

// reached returns whether a call with this outcome got to the other node for certain.
func reached(err error) bool {
	var refusal *peer.Refusal
	return err == nil || errors.As(err, &refusal)
}

// retirements are the deleted mailboxes that every site has heard of.
type retirements map[string]heard

// heard says when every site was first seen to know of a deletion, and by which command.
type heard struct {
	at    time.Time
	index uint64
}

// note takes down how far every site is and returns the deleted mailboxes that were
// known everywhere for long enough. A site that is not asked, or was set back to a time
// before the deletion, may take mail for them still.
func (r retirements) note(now time.Time, s *raftstore.State, positions map[string]uint64) (due []string) {
	for id := range r {
		if s.Mailboxes[id].Status != raftstore.Retired {
			delete(r, id)
		}
	}
	for id, m := range s.Mailboxes {
		if m.Status != raftstore.Retired {
			continue
		}
		h, ok := r[id]
		if !ok {
			h = heard{now, s.Index}
		}
		everywhere, back := true, false
		for _, site := range s.Sites() {
			p, asked := positions[site]
			everywhere = everywhere && asked && p >= h.index
			back = back || asked && p < h.index
		}
		switch {
		case back:
			delete(r, id)
		case everywhere && !ok:
			r[id] = h
		case everywhere && now.Sub(h.at) > keepRetired:
			due = append(due, id)
		}
	}
	slices.Sort(due)
	return due
}

// empty returns those mailboxes of which no site holds a message. A site with damage may
// hold one that cannot be read.
func empty(ids []string, sites []siteHoldings) (none []string) {
	held := map[string]int{}
	for _, site := range sites {
		if site.damaged > 0 {
			return nil
		}
		for _, w := range []map[string]journal.Waiting{site.Own, site.Copies} {
			for id, m := range w {
				held[id] += m.Messages
			}
		}
	}
	for _, id := range ids {
		if held[id] == 0 {
			none = append(none, id)
		}
	}
	return none
}

// siteHoldings is what a site has, and in how many places it cannot be read.
type siteHoldings struct {
	holdings
	damaged int
}

// purgeRetired forgets deleted mailboxes, keys and all, that every site has known to be
// deleted for long enough and of which no site holds anything any more. known is what
// earlier calls have seen.
func (n *Node) purgeRetired(ctx context.Context, known retirements) {
	s := n.store.State()
	retired := 0
	for _, m := range s.Mailboxes {
		if m.Status == raftstore.Retired {
			retired++
		}
	}
	if retired == 0 {
		clear(known)
		return
	}
	positions := map[string]uint64{}
	for _, name := range s.Sites() {
		p, err := n.store.Position(), error(nil)
		if name != n.id.Name {
			p, err = peerCalls{n}.Position(ctx, name)
		}
		if err == nil {
			positions[name] = p.Index
		}
	}
	// Every node takes it down: one that becomes the leader need not begin anew.
	due := known.note(time.Now(), s, positions)
	if len(due) == 0 || n.store.Status().Leader != n.id.Name {
		return
	}
	var sites []siteHoldings
	for _, name := range s.Sites() {
		h, err := n.holdingsAt(ctx, name)
		r, rerr := n.ask(ctx, name)
		if err != nil || rerr != nil {
			return // a site that cannot be asked may hold something
		}
		sites = append(sites, siteHoldings{h, r.Damaged})
	}
	for _, id := range empty(due, sites) {
		pctx, cancel := context.WithTimeout(ctx, proposeTime)
		_, err := n.store.Propose(pctx, raftstore.PurgeMailbox{ID: id})
		cancel()
		if err != nil {
			n.log.Warn("deleted mailbox not forgotten yet", "mailbox", id, "err", err)
			return
		}
		n.log.Info("deleted mailbox forgotten, keys and all", "mailbox", id)
	}
}
