package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"msgw/internal/seal"
)

// A node that has the configuration from its invitation, and answers, but gets
// nothing from raft, must not vote: it would take the quorum away.
func TestNoVoteWithoutRaft(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.admit(a, "msgw2", Site)
	b.calls = true
	b.stream.setCut(true)
	b.open()
	within(t, 20*time.Second, "added without a vote", func() bool { return slices.Contains(a.store.Status().Learners, "msgw2") })
	for range 15 {
		time.Sleep(tick)
		if slices.Contains(a.store.Status().Voters, "msgw2") {
			t.Fatal("votes, and its log is empty")
		}
	}
	a.must(mailbox(1))
	b.stream.setCut(false)
	within(t, 20*time.Second, "votes", func() bool { return slices.Contains(a.store.Status().Voters, "msgw2") })
}

// What may have been made is never reported as not made, whatever came after.
func TestUnknownIsNotRefused(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	within(t, 10*time.Second, "a leads", func() bool { return b.store.Status().Leader == "msgw1" })
	b.loses.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 15*tick)
	defer cancel()
	_, err := b.store.Propose(ctx, mailbox(1))
	if !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNoQuorum) || strings.Contains(err.Error(), "not made") {
		t.Errorf("got %v", err)
	}
}

// fill appends entries to the log of a node that does not run, as a crash leaves
// them: on stable storage, and not known to be committed.
func fill(t *testing.T, dir string, entries ...*raft.Log) (last uint64) {
	t.Helper()
	logs, err := raftboltdb.NewBoltStore(filepath.Join(dir, raftDir, raftFile))
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	if last, err = logs.LastIndex(); err != nil {
		t.Fatal(err)
	}
	var top raft.Log
	if err := logs.GetLog(last, &top); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		last++
		e.Index, e.Term = last, top.Term
	}
	if err := logs.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	return last
}

func entry(ch Change) *raft.Log {
	raw, err := json.Marshal(newCommand("msgw1", ch, time.Now()))
	if err != nil {
		panic(err)
	}
	return &raft.Log{Type: raft.LogCommand, Data: raw}
}

// A new leader does not speak of what it knows before it knows everything, and
// removes nobody on the strength of an older configuration.
func TestNewLeaderCatchesUpFirst(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	state := a.store.State()
	a.close()
	added := Node{Name: "msgw2", ID: "id-msgw2", Role: Site, Peer: "127.0.0.1:1"}
	ca := state.CA
	ca.SealedTo = []string{"msgw1", "msgw2"}
	f := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(a.node.ID), Address: raft.ServerAddress(a.node.Peer)},
		{Suffrage: raft.Nonvoter, ID: raft.ServerID(added.ID), Address: raft.ServerAddress(added.Peer)}}}
	var entries []*raft.Log
	for n := range 600 {
		entries = append(entries, entry(mailbox(n)))
	}
	entries = append(entries, entry(AddInvite{Invite{ID: "i", Role: Site, Expires: time.Now().Add(time.Hour)}}),
		entry(JoinNode{Invite: "i", Node: added, CA: ca}), &raft.Log{Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(f)})
	last := fill(t, a.dir, entries...)
	a.open()
	var index uint64
	for end := time.Now().Add(20 * time.Second); ; {
		var err error
		if index, err = a.store.Confirm(); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if index < last-1 {
		t.Errorf("confirmed at %d, the last command is %d", index, last-1)
	}
	time.Sleep(3 * tick)
	for i := last + 1; i <= a.store.run.Load().raft.LastIndex(); i++ {
		var e raft.Log
		if err := a.store.run.Load().logs.GetLog(i, &e); err == nil && e.Type == raft.LogConfiguration {
			t.Errorf("membership was changed: %+v", raft.DecodeConfiguration(e.Data).Servers)
		}
	}
}

func TestTakesNoPartWithoutItsLog(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	a.must(mailbox(1))
	a.close()
	path := filepath.Join(a.dir, raftDir, raftFile)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a.open()
	for n := range 5 {
		a.must(mailbox(10 + n))
	}
	a.store.run.Load().raft.ReloadConfig(raft.ReloadableConfig{TrailingLogs: 2, SnapshotInterval: time.Hour, SnapshotThreshold: 512,
		HeartbeatTimeout: 2 * tick, ElectionTimeout: 2 * tick})
	if err := a.store.run.Load().raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	a.must(mailbox(20))
	a.close()
	refused := func(what string) {
		t.Helper()
		a.open()
		r := a.store.Renounced()
		if n := len(a.store.State().Mailboxes); r == nil || !strings.Contains(r.Why, "raft") || n != 7 {
			t.Errorf("%s: %+v, %d mailboxes served", what, r, n)
		}
		if _, err := a.propose(mailbox(99)); !errors.Is(err, ErrNoQuorum) {
			t.Errorf("%s: a change: %v", what, err)
		}
		a.close()
		if err := os.Remove(filepath.Join(a.dir, renouncedName)); err != nil {
			t.Error(err)
		}
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	snaps := filepath.Join(a.dir, raftDir, "snapshots")
	if err := os.Rename(snaps, snaps+".away"); err != nil {
		t.Fatal(err)
	}
	refused("snapshots gone")
	for what, b := range map[string][]byte{"empty log": nil, "log of last week": old} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(what)
	}
	if err := errors.Join(os.RemoveAll(snaps), os.Rename(snaps+".away", snaps), os.WriteFile(path, now, 0o600)); err != nil {
		t.Fatal(err)
	}
	a.open()
	if n := len(a.store.State().Mailboxes); n != 7 {
		t.Errorf("%d mailboxes", n)
	}
}

// A command of a newer version is not applied in part: this node stops there, serves
// on, says so, and goes on once it is upgraded.
func TestCommandOfANewerVersion(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	a.must(mailbox(1))
	for _, raw := range []string{
		`{"request":"r1","at":"2026-01-01T00:00:00Z","by":"x","op":"from-the-future","args":{}}`,
		`{"request":"r2","at":"2026-01-01T00:00:00Z","by":"x","op":"node.weight","args":{"node":"msgw1","weight":3,"until":"tomorrow"}}`,
		`{"request":"r3","at":"2026-01-01T00:00:00Z","by":"x","op":"node.weight","args":{"node":"msgw1","weight":3},"urgent":true}`,
		`{} {}`, `null`, ``,
	} {
		index := a.store.run.Load().raft.LastIndex()
		b, err := a.store.Receive([]byte(raw))
		var out Outcome
		if err != nil || json.Unmarshal(b, &out) != nil || out.Rejection == nil {
			t.Errorf("%s: %s, %v", raw, b, err)
		}
		x := a.store.run.Load()
		for i := index + 1; i <= x.raft.LastIndex(); i++ { // what a new leader writes by itself is there, too
			var e raft.Log
			if err := x.logs.GetLog(i, &e); err != nil || e.Type == raft.LogCommand {
				t.Errorf("%s got into the log: %v", raw, err)
			}
		}
	}
	before := a.store.State()
	a.close()
	fill(t, a.dir, &raft.Log{Type: raft.LogCommand, Data: []byte(`{"request":"r","at":"2026-01-01T00:00:00Z","by":"x","op":"from-the-future"}`)},
		entry(SetWeight{"msgw1", 7}))
	a.open()
	within(t, 10*time.Second, "it says so", func() bool {
		err := a.store.Status().Err
		return err != nil && strings.Contains(err.Error(), "another version")
	})
	if got := a.store.State(); got.Index != before.Index || got.Nodes["msgw1"].Weight != 1 {
		t.Errorf("went on to %d with weight %d", got.Index, got.Nodes["msgw1"].Weight)
	}
	if err := a.store.run.Load().raft.Snapshot().Error(); err == nil {
		t.Error("a snapshot without the command was made")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*tick)
	defer cancel()
	if _, err := a.store.Propose(ctx, mailbox(2)); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("a change while stopped: %v", err)
	}
	if _, err := a.store.Confirm(); err == nil {
		t.Error("confirms what it does not know")
	}
}

func TestNewerFilesAreNotReadInPart(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(&State{Format: stateFormat, Cluster: "c", Nodes: map[string]Node{}, Mailboxes: map[string]Mailbox{}, Invites: map[string]Invite{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeState(b); err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(b), `{"format":1`, `{"format":1,"quotas":{}`, 1)
	if _, err := decodeState([]byte(newer)); !errors.Is(err, errNotUnderstood) {
		t.Errorf("a field was dropped: %v", err)
	}
}

// Two versions may refuse with other words, and still agree.
func TestWordsAreNoDivergence(t *testing.T) {
	t.Parallel()
	out := func(code, text string) string {
		return link("p", []byte("c"), Outcome{"r", 1, &Rejection{code, text}})
	}
	if out("exists", "one") != out("exists", "two") || out("exists", "x") == out("missing", "x") ||
		out("exists", "x") == link("p", []byte("c"), Outcome{Request: "r", Index: 1}) {
		t.Error("hash follows the words or not the outcome")
	}
}

// A file that could not be written is written once that is possible again.
func TestFileIsWrittenAgain(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	away := a.dir + ".away"
	if err := os.Rename(a.dir, away); err != nil {
		t.Fatal(err)
	}
	if _, err := a.propose(mailbox(1)); err == nil || !strings.Contains(err.Error(), "the change is made") {
		t.Errorf("reported %v", err)
	}
	if a.store.Status().Err == nil {
		t.Error("no trouble reported")
	}
	if _, ok := a.store.State().Mailboxes[mailbox(1).ID]; !ok {
		t.Error("not served")
	}
	if err := os.Rename(away, a.dir); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the file is written", func() bool { return a.store.Status().Err == nil })
	s, err := LoadState(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Mailboxes[mailbox(1).ID]; !ok {
		t.Error("not in the file")
	}
}

// FuzzCommand feeds the state machine what a peer could put into the log: it comes to
// the same state everywhere, and a command that is refused or sent again changes
// nothing that is served.
func FuzzCommand(f *testing.F) {
	for _, ch := range []Change{mailbox(1), SetWeight{"msgw1", 3}, SetStatus{mailbox(9).ID, Suspended}, PurgeMailbox{mailbox(9).ID},
		AddInvite{Invite{ID: "i", Role: Site}}, JoinNode{Invite: "open"}, UpdateNode{Node{Name: "msgw1", ID: "id"}},
		SetKeys{mailbox(9).ID, 1, []seal.Key{{ID: "k1", Recipient: "r", State: seal.Active}}}, SetACME{}, initState{}} {
		raw, _ := json.Marshal(newCommand("msgw1", ch, time.Unix(1, 0)))
		f.Add(raw)
	}
	base := &State{Format: stateFormat, Cluster: "c", Revision: 5, Index: 9, Hash: "h",
		Nodes:     map[string]Node{"msgw1": {Name: "msgw1", ID: "id", Role: Site, Peer: "p", Weight: 1}},
		Mailboxes: map[string]Mailbox{mailbox(9).ID: {ID: mailbox(9).ID, Status: Active, Version: 1, Keys: []seal.Key{mailbox(9).Key}}},
		Invites:   map[string]Invite{"open": {ID: "open", Role: Site, Expires: time.Unix(1<<33, 0)}}}
	served := func(s *State) string {
		c := s.clone()
		c.Index, c.Term, c.Hash, c.Recent = 0, 0, "", nil
		b, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		return string(b)
	}
	want := served(base)
	f.Fuzz(func(t *testing.T, raw []byte) {
		one, out, err := base.apply(raw, 10, 2)
		two, _, err2 := base.apply(raw, 10, 2)
		if served(base) != want {
			t.Fatal("a published state was changed")
		}
		if err != nil || err2 != nil {
			if (err == nil) != (err2 == nil) {
				t.Fatalf("%v, then %v", err, err2)
			}
			return
		}
		if one.Hash != two.Hash || served(one) != served(two) {
			t.Fatal("not deterministic")
		}
		if out.Rejection != nil && served(one) != want {
			t.Fatalf("refused with %v, and changed something", out.Rejection)
		}
		again, _, err := one.apply(raw, 11, 2)
		if err != nil || served(again) != served(one) {
			t.Fatalf("sent again, it changed something: %v", err)
		}
		if again.Revision < one.Revision || one.Revision < base.Revision {
			t.Fatal("the revision fell")
		}
	})
}
