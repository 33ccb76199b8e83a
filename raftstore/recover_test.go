package raftstore

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"msgw/internal/seal"
)

// copyOf keeps a copy of a member's directory, as a machine's snapshot does.
func (m *member) copyOf() string {
	m.t.Helper()
	to := filepath.Join(m.t.TempDir(), "copy")
	if err := copyTree(m.dir, to); err != nil {
		m.t.Fatal(err)
	}
	return to
}

func (m *member) recover(why string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	if err := m.store.Recover(ctx, why); err != nil {
		m.t.Fatalf("recover: %v", err)
	}
}

// epochs lets only members of one epoch reach each other, as the peer port does.
func (c *cluster) epochs() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.m {
		if m.store != nil {
			m.stream.epoch.Store(m.store.Epoch().String())
		}
	}
}

// rejoin takes m in again through via.
func (m *member) rejoin(via *member) {
	m.t.Helper()
	r, err := m.store.Renounce("it rejoins")
	if err != nil {
		m.t.Fatal(err)
	}
	old := m.store.State()
	var carried []Mailbox
	for id, b := range old.Mailboxes {
		if _, ok := via.store.State().Mailboxes[id]; !ok {
			carried = append(carried, b)
		}
	}
	via.must(RejoinNode{Name: m.node.Name, Old: r.ID, New: r.New, Revision: old.Revision, Mailboxes: carried})
	if err := m.store.Rejoin(Rejoin{r.New, via.store.State()}); err != nil {
		m.t.Fatal(err)
	}
	m.node.ID = r.New
	m.cluster.epochs()
	within(m.t, 20*time.Second, m.node.Name+" votes again", func() bool {
		return slices.Contains(via.store.Status().Voters, m.node.Name) && m.store.State().Hash == via.store.State().Hash
	})
}

func TestRecoverAndReturn(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	c.epochs()
	a.must(mailbox(1))
	// On a busy machine a leader steps down for a moment.
	within(t, 10*time.Second, "quorum", func() bool { return a.store.Status().Quorum })
	if err := a.store.Recover(t.Context(), "for fun"); !errors.Is(err, ErrQuorum) {
		t.Fatalf("recovery with a quorum: %v", err)
	}
	b.close()
	within(t, 10*time.Second, "no quorum", func() bool { return !a.store.Status().Quorum })
	before := a.store.State()
	a.recover("msgw2 burned down")
	c.epochs()
	s := a.store.State()
	if s.Epoch.Number != 2 || a.store.Epoch() != s.Epoch || len(s.Lineage) != 1 || s.Lineage[0].Parent != before.Epoch || s.Lineage[0].Why != "msgw2 burned down" ||
		!slices.Equal(s.Lineage[0].Lost, []string{"msgw2"}) || s.Revision <= before.Revision || len(s.Mailboxes) != 1 {
		t.Errorf("%+v", s)
	}
	a.must(mailbox(2))

	// The other one comes back: it is not heard, and rejoins.
	b.open()
	c.epochs()
	line, other := b.store.State().Line(), a.store.State().Line()
	if r := line.Relate(other); r != Ancestor {
		t.Errorf("the old lineage is %s", r)
	}
	if r := other.Relate(line); r != Descendant {
		t.Errorf("the new lineage is %s", r)
	}
	time.Sleep(10 * tick)
	if v := a.store.Status().Voters; !slices.Equal(v, []string{"msgw1"}) || b.store.Status().Quorum {
		t.Errorf("voters %v; the old node has a quorum: %v", v, b.store.Status().Quorum)
	}
	b.rejoin(a)
	b.must(mailbox(3))
	if n := len(a.store.State().Mailboxes); n != 3 {
		t.Errorf("%d mailboxes", n)
	}
	if old, err := filepath.Glob(filepath.Join(b.dir, "raft.before-*", materialisedName)); err != nil || len(old) != 1 {
		t.Errorf("kept aside: %v %v", old, err)
	}
	// Restarts change nothing of it.
	b.close()
	b.open()
	c.epochs()
	within(t, 10*time.Second, "a quorum", func() bool { return b.store.Status().Quorum })
	b.must(mailbox(4))
}

// A recovery that was cut short at any step is gone on with by the next start.
func TestRecoveryIsFinishedAfterACrash(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"marked", "archived", "rewritten", "log lost"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			c, a := start(t)
			b := c.join(a, "msgw2", Site)
			c.epochs()
			a.must(mailbox(1))
			b.close()
			within(t, 10*time.Second, "no quorum", func() bool { return !a.store.Status().Quorum })
			state := a.store.State()
			r := &recovery{Start: StartEpoch{Epoch: Epoch{2, "e2e2"}, Parent: state.Epoch, Why: "it was lost"}}
			r.Command = entry(r.Start).Data
			a.close()
			if err := saveJSON(filepath.Join(a.dir, recoveryName), r); err != nil {
				t.Fatal(err)
			}
			switch step {
			case "archived":
				if err := archive(a.dir, archivePart+r.Start.Epoch.String()); err != nil {
					t.Fatal(err)
				}
			case "rewritten":
				a.open()
				within(t, 10*time.Second, "the epoch", func() bool { return a.store.recovering() == nil })
				a.close()
				if err := saveJSON(filepath.Join(a.dir, recoveryName), r); err != nil {
					t.Fatal(err)
				}
			case "log lost":
				if err := os.RemoveAll(filepath.Join(a.dir, raftDir)); err != nil {
					t.Fatal(err)
				}
			}
			a.open()
			if got := a.store.Epoch(); got != r.Start.Epoch {
				t.Errorf("epoch %s from the start", got)
			}
			within(t, 10*time.Second, "the epoch", func() bool { return a.store.recovering() == nil })
			a.must(mailbox(2))
			s := a.store.State()
			if s.Epoch != r.Start.Epoch || len(s.Lineage) != 1 || len(s.Mailboxes) != 2 || s.Revision <= state.Revision {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A node whose disk was set back is refused by the others, and knows it.
func TestSetBack(t *testing.T) {
	t.Parallel()
	for _, with := range []string{"a witness", "nobody else"} {
		t.Run(with, func(t *testing.T) {
			t.Parallel()
			c, a := start(t)
			b := c.join(a, "msgw2", Site)
			var w *member
			if with == "a witness" {
				w = c.join(a, "witness", Witness)
			}
			c.epochs()
			a.must(mailbox(1))
			within(t, 5*time.Second, "msgw2 has it", func() bool { return b.store.Position().Index == a.store.Position().Index })
			b.close()
			copied := b.copyOf()
			b.open()
			c.epochs()
			within(t, 10*time.Second, "a quorum", func() bool { return b.store.Status().Quorum })
			for n := range 3 {
				b.must(mailbox(10 + n))
			}
			for range 2 { // as they do all the time
				for _, m := range c.m {
					for name, o := range c.m {
						if o != m {
							m.store.Compare(name, o.store.Position())
						}
					}
				}
			}
			b.close()
			b.dir = copied
			// The one that remembers has been restarted since, too.
			a.close()
			a.open()
			b.open()
			c.epochs()
			within(t, 15*time.Second, "msgw2 renounces", func() bool { return b.store.Renounced() != nil })
			if why := b.store.Renounced().Why; !strings.Contains(why, "set back") {
				t.Error(why)
			}
			if with == "a witness" {
				within(t, 15*time.Second, "a quorum without msgw2", func() bool { return a.store.Status().Quorum })
			} else {
				within(t, 10*time.Second, "no quorum", func() bool { return !a.store.Status().Quorum })
				a.recover("msgw2 was set back and votes no more")
				c.epochs()
			}
			within(t, 5*time.Second, "msgw1 says so", func() bool {
				return len(a.store.Status().SetBack) == 1 || w != nil && len(w.store.Status().SetBack) == 1
			})
			b.rejoin(a)
			if n := len(b.store.State().Mailboxes); n != 4 {
				t.Errorf("%d mailboxes", n)
			}
			within(t, 5*time.Second, "it is as any other", func() bool { return len(a.store.Status().SetBack) == 0 })
			b.must(mailbox(20))
		})
	}
}

// Restarts, elections and changes under way are no reason to refuse a node.
func TestNobodyIsRefusedWithoutReason(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	w := c.join(a, "witness", Witness)
	c.epochs()
	all := []*member{a, b, w}
	for n := range 12 {
		m := all[n%3]
		m.close()
		for k := range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 4*tick)
			_, _ = all[(n+1)%3].store.Propose(ctx, mailbox(100+10*n+k)) // whatever comes of it
			cancel()
		}
		m.open()
		c.epochs()
		m.stream.setCut(true)
		time.Sleep(2 * tick)
		m.stream.setCut(false)
	}
	within(t, 20*time.Second, "a quorum", func() bool { return a.store.Status().Quorum && b.store.Status().Quorum && w.store.Status().Quorum })
	a.must(mailbox(1))
	for _, m := range all {
		if s := m.store.Status(); m.store.Renounced() != nil || len(s.SetBack) > 0 || s.Err != nil {
			t.Errorf("%s: %v %+v", m.node.Name, m.store.Renounced(), s)
		}
	}
}

// A lost site is replaced by a new machine, and the lost one cannot come back.
func TestReplace(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	lost := c.join(a, "msgw2", Site)
	w := c.join(a, "witness", Witness)
	c.epochs()
	a.must(SetWeight{"msgw2", 7})
	lost.close()
	within(t, 10*time.Second, "a quorum without it", func() bool { return a.store.Status().Quorum && w.store.Status().Quorum })
	old := a.store.State().Nodes["msgw2"]
	inv := Invite{ID: "inv-r", Role: Site, Expires: time.Now().Add(time.Hour), Replaces: "msgw2", ReplacesID: old.ID}
	bad := inv
	bad.ReplacesID = "another"
	if _, err := a.propose(AddInvite{bad}); err == nil {
		t.Error("an invitation to replace a node that is not there")
	}
	a.must(AddInvite{inv})
	n := c.newMember("msgw2", Site)
	n.node.ID, n.node.Host = "id-new", ""
	sites := []string{"msgw1", "msgw2"}
	other := n.node
	other.Name = "msgw3"
	if _, err := a.propose(JoinNode{Invite: "inv-r", Node: other, CA: CA{SealedTo: sites}}); err == nil {
		t.Error("a node of another name took the place")
	}
	a.must(JoinNode{Invite: "inv-r", Node: n.node, CA: CA{SealedTo: sites}})
	if err := Adopt(n.dir, a.store.State()); err != nil {
		t.Fatal(err)
	}
	n.open()
	c.epochs()
	within(t, 20*time.Second, "the new one votes", func() bool {
		v := slices.Sorted(slices.Values(a.store.Status().Voters))
		return slices.Equal(v, []string{"msgw1", "msgw2", "witness"})
	})
	s := a.store.State()
	if got := s.Nodes["msgw2"]; got.ID != "id-new" || got.Weight != 7 || got.Host != old.Host {
		t.Errorf("%+v", got)
	}
	if f, ok := s.FormerID(old.ID); !ok || f.Why != "replaced" {
		t.Errorf("%+v %v", f, ok)
	}
	if _, err := a.propose(RejoinNode{Name: "msgw2", Old: old.ID, New: "id-again"}); err == nil {
		t.Error("the lost one took its place back")
	}
	if _, err := a.propose(JoinNode{Invite: "inv-r", Node: n.node, CA: CA{SealedTo: sites}}); err == nil {
		t.Error("the invitation was used twice")
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	c.epochs()
	// Whichever leads: the one that goes, too.
	b.must(mailbox(1))
	gone := a.store.State().Nodes["msgw1"]
	ca := CA{SealedTo: []string{"msgw2"}, Certificate: "after"}
	if _, err := b.propose(RemoveNode{Name: "msgw1", ID: gone.ID, CA: ca}); err == nil {
		t.Error("removed with its vote")
	}
	b.must(LeaveNode{"msgw1", gone.ID})
	within(t, 15*time.Second, "msgw1 votes no more", func() bool {
		s := b.store.Status()
		return s.Quorum && slices.Equal(s.Voters, []string{"msgw2"})
	})
	if _, err := b.propose(RemoveNode{Name: "msgw1", ID: gone.ID, CA: CA{SealedTo: []string{"msgw1", "msgw2"}}}); err == nil {
		t.Error("removed with the CA still sealed to it")
	}
	b.must(RemoveNode{Name: "msgw1", ID: gone.ID, CA: ca})
	within(t, 15*time.Second, "msgw2 is alone and can change", func() bool {
		s := b.store.Status()
		return s.Quorum && slices.Equal(s.Voters, []string{"msgw2"})
	})
	b.must(mailbox(2))
	if _, err := b.propose(LeaveNode{"msgw2", b.node.ID}); err == nil {
		t.Error("the last site was removed")
	}
	if _, ok := a.store.State().NodeByID(gone.ID); ok {
		t.Log("msgw1 has not heard of it") // it need not
	}
}

// Both sides broke the glass: that is seen, and one gives way with nothing lost that
// mail depends on.
func TestFork(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	c.epochs()
	a.must(mailbox(1))
	within(t, 5*time.Second, "msgw2 has it", func() bool { return b.store.Position().Index == a.store.Position().Index })
	a.stream.setCut(true)
	b.stream.setCut(true)
	for _, m := range []*member{a, b} {
		within(t, 10*time.Second, "no quorum", func() bool { return !m.store.Status().Quorum })
		m.recover("the other one is gone")
	}
	a.must(mailbox(2))
	b.must(mailbox(3))
	key := a.store.State().Mailboxes[mailbox(1).ID].Keys[0]
	b.must(SetKeys{ID: mailbox(1).ID, Version: 1, Keys: []seal.Key{{ID: key.ID, Recipient: key.Recipient, State: seal.DecryptOnly}, {ID: "k2", Recipient: "r2", State: seal.Active}}})
	for range 5 {
		b.must(SetWeight{"msgw2", 3})
	}
	c.epochs()
	a.stream.setCut(false)
	b.stream.setCut(false)
	time.Sleep(10 * tick)
	la, lb := a.store.State().Line(), b.store.State().Line()
	if la.Relate(lb) != Fork || lb.Relate(la) != Fork {
		t.Errorf("%s and %s: %s, %s", la.Epoch, lb.Epoch, la.Relate(lb), lb.Relate(la))
	}
	served := b.store.State().Revision
	r, err := b.store.Renounce("msgw1's configuration is the one")
	if err != nil {
		t.Fatal(err)
	}
	old := b.store.State()
	a.must(RejoinNode{Name: "msgw2", Old: r.ID, New: r.New, Revision: old.Revision,
		Mailboxes: []Mailbox{old.Mailboxes[mailbox(1).ID], old.Mailboxes[mailbox(3).ID]}})
	b.node.ID = r.New
	b.close()
	b.open() // with the new id, still renounced
	if b.store.Renounced() == nil {
		t.Fatal("it forgot that it renounced")
	}
	if err := b.store.Rejoin(Rejoin{r.New, a.store.State()}); err != nil {
		t.Fatal(err)
	}
	c.epochs()
	within(t, 20*time.Second, "msgw2 votes", func() bool { return slices.Contains(a.store.Status().Voters, "msgw2") })
	s := b.store.State()
	if len(s.Mailboxes) != 3 || s.Revision <= served || s.Nodes["msgw2"].Weight != 1 {
		t.Errorf("%d mailboxes, revision %d after %d, weight %d", len(s.Mailboxes), s.Revision, served, s.Nodes["msgw2"].Weight)
	}
	if m := s.Mailboxes[mailbox(1).ID]; len(m.Keys) != 2 || m.Keys[1].State != seal.DecryptOnly || m.Keys[0].State != seal.Active {
		t.Errorf("%+v", m)
	}
}

// Whatever comes over a raft connection before raft, nothing is waited for without end,
// and nothing large is read.
func FuzzGreeting(f *testing.F) {
	for _, s := range []string{"", "\n", "{}\n", `{"id":"a","epoch":"1-a"}` + "\n" + `{"log":{"term":1}}` + "\n", `{"id":"a","epoch":"1-a"}` + "\n" + `{"log":{"term":9,"last_index":-1}}` + "\n", strings.Repeat("x", 600)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		go func() {
			there.Write(b)
			there.Close()
		}()
		go io.Copy(io.Discard, there)
		r := &reached{path: filepath.Join(t.TempDir(), reachedName), m: map[string]LogEnd{"a": {Term: 3}}}
		s := &streams{reached: r, timeout: time.Second, epoch: func() Epoch { return Epoch{1, "a"} }, refused: func(string, LogEnd, LogEnd) {}, setBack: func(error) {}}
		_ = s.answer(here, "me", func() (LogEnd, error) { return LogEnd{}, nil })
		here.Close()
	})
}
