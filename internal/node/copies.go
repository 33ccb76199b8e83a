package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"msgw/internal/admin"
	"msgw/internal/ca"
	"msgw/internal/journal"
	"msgw/internal/peer"
	"msgw/internal/shadow"
	"msgw/raftstore"
	"msgw/smtpnode"
)

// openMail opens this site's messages and the other site's, and what keeps the two
// copies of each. closeAll ends them.
func (n *Node) openMail() (closeAll func() error, err error) {
	ready := make(chan struct{}) // damage that is found before is looked for once there is a link
	onDamage := func(journal.Damage) {
		select {
		case <-ready:
			n.shipper.Repair()
		default:
		}
	}
	if n.journal, err = n.openJournal(journalDir, journal.Options{OnDamage: onDamage}); err != nil {
		return nil, err
	}
	end := n.journal.Close
	defer func() {
		if err != nil {
			err = errors.Join(err, end())
		}
	}()
	if n.held, err = n.openJournal(shadowDir, journal.Options{}); err != nil {
		return nil, err
	}
	end = func() error { return errors.Join(n.held.Close(), n.journal.Close()) }
	if n.shipper, err = shadow.Open(shadow.Options{Own: n.journal, Dial: n.dialOther, Dir: n.cfg.State, Settings: n.shipping, Log: n.log}); err != nil {
		return nil, n.unreadable(err)
	}
	close(ready)
	settings := func() raftstore.Copies { return n.store.State().Copies }
	n.holder, err = shadow.OpenHolder(shadow.HolderOptions{Held: n.held, Dir: n.cfg.State, Log: n.log,
		Silence:   func() time.Duration { return orDefault(settings().Adopt, shadow.AdoptAfter) },
		Confirmed: func() time.Duration { return orDefault(settings().AdoptConfirmed, shadow.AdoptConfirmed) },
		Confirm:   func() bool { other, ok := n.other(); return ok && n.health.Gone(other.Name) }})
	if err != nil {
		return nil, n.unreadable(err)
	}
	return end, nil
}

func (n *Node) openJournal(name string, o journal.Options) (*journal.Journal, error) {
	dir := filepath.Join(n.cfg.State, name)
	if _, err := os.Stat(dir); err != nil {
		return nil, operatorError(fmt.Errorf("the waiting mail is not where it was: %w", err),
			"mount or restore it; to go on without what waited there, make the directory, empty")
	}
	o.KeepGraves, o.Log = true, n.log.With("journal", name)
	return journal.Open(dir, o)
}

// unreadable is for a small file of the state directory that does not parse.
func (n *Node) unreadable(err error) error {
	return operatorError(fmt.Errorf("in %s: %w", n.cfg.State, err), "restore the file, or remove it: the node then starts as if it had just lost the other site")
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// shipping is how copies are sent, by the replicated settings.
func (n *Node) shipping() shadow.Settings {
	c := n.store.State().Copies
	return shadow.Settings{Times: shadow.Times{Refused: c.Refused, Silent: c.Silent, Wait: c.Wait, Return: c.Return}, Bandwidth: c.Bandwidth}
}

// other returns the site that keeps the copies of this one's messages.
func (n *Node) other() (raftstore.Node, bool) {
	s := n.store.State()
	for _, name := range s.Sites() {
		if name != n.id.Name {
			return s.Nodes[name], true
		}
	}
	return raftstore.Node{}, false
}

func (n *Node) dialOther(ctx context.Context) (net.Conn, error) {
	other, ok := n.other()
	if !ok {
		return nil, shadow.ErrAlone
	}
	return n.dialer.Dial(ctx, peer.Copies, other.ID)
}

// fromOther is a listener that takes connections of the other site only: a witness is a
// member too, and has no messages.
type fromOther struct {
	net.Listener
	n *Node
}

func (l fromOther) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err = l.n.checkOther(c); err == nil {
			return c, nil
		}
		l.n.log.Warn("connection for copies refused", "peer", c.RemoteAddr().String(), "err", err)
		c.Close()
	}
}

func (n *Node) checkOther(c net.Conn) error {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return errors.New("not over TLS")
	}
	id, err := ca.VerifyPeer(n.members.Root(), t.ConnectionState().PeerCertificates, time.Now())
	if err != nil {
		return err
	}
	if other, ok := n.other(); !ok || other.ID != id.ID {
		return fmt.Errorf("%s is not the other site", id.Node)
	}
	return nil
}

// mailStore is the smtpnode.Store of this node: both copies.
type mailStore struct{ n *Node }

func (s mailStore) NewBody(id journal.ID) smtpnode.Body { return s.n.shipper.NewBody(id) }

func (s mailStore) Commit(ctx context.Context, strict bool, ms ...smtpnode.Message) (copies int, err error) {
	s.n.committing.Add(1)
	defer s.n.committing.Add(-1)
	out := make([]shadow.Message, len(ms))
	for i, m := range ms {
		out[i] = shadow.Message{Meta: m.Meta, Body: m.Body.(*shadow.Body)}
	}
	// The transfer may have begun before this node heard that it is no member any more.
	if why := s.n.gone(); why != "" {
		for _, m := range out {
			m.Body.Discard()
		}
		return 0, errors.New(why)
	}
	return s.n.shipper.Commit(ctx, strict, out...)
}

func (s mailStore) Refuse(strict bool) error { return s.n.shipper.Refuse(strict) }
func (s mailStore) Room(size int64) error    { return s.n.journal.Room(size) }

func (s mailStore) Err() error {
	if why := s.n.gone(); why != "" {
		return errors.New(why)
	}
	return s.n.journal.Err()
}

// holdings is what a site has, by mailbox.
type holdings struct {
	Own     map[string]journal.Waiting `json:"own"`
	Copies  map[string]journal.Waiting `json:"copies"`  // of the other site's messages
	Adopted bool                       `json:"adopted"` // those are handed over here
}

func (n *Node) holdings() holdings {
	if n.witness {
		return holdings{}
	}
	h := holdings{Own: n.journal.Waiting(), Copies: n.held.Waiting()}
	h.Adopted, _, _ = n.holder.Adopted()
	return h
}

// waiting sums up what the archive gets at this site.
func (h holdings) waiting() admin.Waiting {
	w := total(h.Own)
	if h.Adopted {
		c := total(h.Copies)
		w.Messages, w.Octets = w.Messages+c.Messages, w.Octets+c.Octets
		for mailbox := range h.Copies {
			if _, ok := h.Own[mailbox]; !ok {
				w.Mailboxes++
			}
		}
		if w.Oldest.IsZero() || !c.Oldest.IsZero() && c.Oldest.Before(w.Oldest) {
			w.Oldest = c.Oldest
		}
	}
	return w
}

// copies says how the copies are.
func (n *Node) copies(h holdings) *admin.Copies {
	if n.witness {
		return nil
	}
	r := n.shipper.Report()
	c := &admin.Copies{State: string(r.State), Since: r.Since, Single: r.Single, Compared: r.Compared, Lost: r.Lost, Conflicts: r.Conflicts, Damaged: r.Damaged, Repaired: r.Repaired,
		Heard: r.Heard, Trouble: r.Trouble, Held: total(h.Copies).Messages, Policy: string(n.policy(""))}
	if c.Adopted, c.AdoptedSince, c.AdoptedWhy = n.holder.Adopted(); !c.Adopted {
		c.AdoptedSince, c.AdoptedWhy = time.Time{}, ""
	}
	return c
}

// policy is what a mailbox's policy amounts to.
func (n *Node) policy(own raftstore.Policy) raftstore.Policy {
	if n.store.State().Strict(raftstore.Mailbox{Policy: own}) {
		return raftstore.Strict
	}
	return raftstore.Available
}

// copyTrouble says what a person should look at.
func copyTrouble(c *admin.Copies) (trouble []string) {
	say := func(format string, args ...any) { trouble = append(trouble, fmt.Sprintf(format, args...)) }
	switch shadow.State(c.State) {
	case shadow.Degraded:
		say("no copies at the other site since %s: %d messages are known to have one copy", c.Since.Local().Format(time.DateTime), c.Single)
	case shadow.Hold:
		say("the other site does not answer since %s: senders wait", c.Since.Local().Format(time.DateTime))
	case shadow.CatchUp:
		if c.Single > 0 {
			say("%d messages have one copy; they are on their way to the other site", c.Single)
		}
	}
	if c.Trouble != "" {
		say("the other site does not store: %s", c.Trouble)
	}
	if c.Lost > 0 {
		say("%d messages of this site are held by the other one only and cannot be fetched", c.Lost)
	}
	if c.Conflicts > 0 {
		say("%d messages differ between the sites; the log names them", c.Conflicts)
	}
	if c.Damaged > 0 {
		say("%d damaged messages could not be repaired from the other copy; the log names them", c.Damaged)
	}
	if c.Adopted {
		say("the other site's %d messages are handed over here since %s: %s", c.Held, c.AdoptedSince.Local().Format(time.DateTime), c.AdoptedWhy)
	}
	return trouble
}

// aliveFor is how long the other site counts as alive after it was heard.
const aliveFor = 5 * time.Second

// Adopt hands the other site's messages over here from now on, until it is back.
func (n operator) Adopt(ctx context.Context, name string) (admin.Copies, error) {
	node, ok := n.store.State().Nodes[name]
	other, have := n.other()
	switch {
	case n.witness:
		return admin.Copies{}, admin.Errorf(http.StatusConflict, "ask the site that is left", "a witness holds no messages")
	case !ok:
		return admin.Copies{}, admin.Errorf(http.StatusNotFound, "`msgw node list` shows them", "no node is named %s", name)
	case !have || node.ID != other.ID:
		return admin.Copies{}, admin.Errorf(http.StatusBadRequest, "name the other site", "this node holds no copies for %s", name)
	}
	// One that was just lost is silent from now on; one that lives is heard again.
	for last := n.holder.Heard(); time.Since(last) < aliveFor; {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return admin.Copies{}, ctx.Err()
		}
		if heard := n.holder.Heard(); heard.After(last) {
			return admin.Copies{}, admin.Errorf(http.StatusConflict, "its messages are handed over there; stop it first if they are to be handed over here",
				"%s lives: it was heard just now", name)
		}
	}
	if err := n.holder.Adopt(); err != nil {
		return admin.Copies{}, err
	}
	return *n.copies(n.holdings()), nil
}

// Copies returns how the sites are to keep copies.
func (n operator) Copies(context.Context) (admin.CopySettings, error) {
	c := n.store.State().Copies
	times, bandwidth := shadow.Times{}.OrDefaults(), c.Bandwidth
	return admin.CopySettings{Policy: string(n.policy("")), Refused: orDefault(c.Refused, times.Refused), Silent: orDefault(c.Silent, times.Silent),
		Wait: orDefault(c.Wait, times.Wait), Adopt: orDefault(c.Adopt, shadow.AdoptAfter), AdoptConfirmed: orDefault(c.AdoptConfirmed, shadow.AdoptConfirmed),
		Return: orDefault(c.Return, times.Return), Bandwidth: bandwidth}, nil
}

// SetCopies changes it.
func (n operator) SetCopies(ctx context.Context, c admin.CopySettings) (admin.Change, error) {
	return n.change(ctx, raftstore.SetCopies{Copies: raftstore.Copies{Policy: raftstore.Policy(c.Policy), Refused: c.Refused, Silent: c.Silent,
		Wait: c.Wait, Adopt: c.Adopt, AdoptConfirmed: c.AdoptConfirmed, Return: c.Return, Bandwidth: c.Bandwidth}})
}

// SetMailboxPolicy gives a mailbox a policy of its own; empty: that of the appliance.
func (n operator) SetMailboxPolicy(ctx context.Context, id, policy string) (admin.Change, error) {
	m, err := n.find(id)
	if err != nil {
		return admin.Change{}, err
	}
	return n.change(ctx, raftstore.SetPolicy{ID: m.ID, Policy: raftstore.Policy(policy)})
}
