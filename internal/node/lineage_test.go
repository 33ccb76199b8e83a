package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/ca"
	"msgw/internal/journal"
	"msgw/raftstore"
	"msgw/smtpnode"
)

// Who is a member, who may come back, and who may not, whatever became of its name since.
func TestStanding(t *testing.T) {
	t.Parallel()
	at := time.Now()
	s := &raftstore.State{Nodes: map[string]raftstore.Node{"msgw1": {Name: "msgw1", ID: "a1"}, "msgw2": {Name: "msgw2", ID: "n0"}, "msgw4": {Name: "msgw4", ID: "d1"}},
		Former: []raftstore.Former{
			{Name: "msgw2", ID: "b0", Why: "rejoined", At: at}, {Name: "msgw1", ID: "a0", Why: "rejoined", At: at}, {Name: "msgw2", ID: "b1", Why: "rejoined", At: at},
			{Name: "msgw2", ID: "b2", Why: "replaced", At: at}, {Name: "msgw3", ID: "c0", Why: "removed", At: at}, {Name: "msgw4", ID: "d0", Why: "removed", At: at}}}
	for _, c := range []struct{ node, id, want string }{
		{"msgw1", "a1", ""}, {"msgw2", "n0", ""},
		{"msgw1", "a0", ""}, // was set back to before it rejoined
		{"msgw2", "b0", "replaced"}, {"msgw2", "b1", "replaced"}, {"msgw2", "b2", "replaced"},
		{"msgw3", "c0", "removed"}, {"msgw4", "d0", "removed"},
		{"msgw9", "z", "not known"}, {"msgw2", "z", "not known"},
	} {
		err := standing(s, ca.Identity{Node: c.node, ID: c.id})
		var gone *formerError
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s (%s): %v", c.node, c.id, err)
		case errors.As(err, &gone) != (c.want == "replaced" || c.want == "removed"):
			t.Errorf("%s (%s): taken for a former member: %v", c.node, c.id, errors.As(err, &gone))
		}
	}
}

// A node goes on without another one only if it has all that that one acknowledged.
func TestOnlyVoters(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		voters []string
		want   bool
	}{
		{[]string{"msgw1", "msgw2"}, true}, {[]string{"msgw2", "msgw1"}, true},
		{[]string{"msgw2"}, false}, // this one had not caught up
		{[]string{"msgw1"}, false}, {nil, false}, {[]string{"msgw1", "msgw2", "witness"}, false}, {[]string{"msgw1", "witness"}, false},
	} {
		if got := onlyVoters(c.voters, "msgw1", "msgw2"); got != c.want {
			t.Errorf("%v: %v", c.voters, got)
		}
	}
}

// What is given up is counted from where the two lineages parted, however many epochs
// began since.
func TestParted(t *testing.T) {
	t.Parallel()
	epoch := func(n uint64, id string) raftstore.Epoch { return raftstore.Epoch{Number: n, ID: id} }
	begun := func(e, parent raftstore.Epoch) raftstore.EpochStart {
		return raftstore.EpochStart{Epoch: e, Parent: parent}
	}
	e1, e2, e3, e4, other := epoch(1, "a"), epoch(2, "b"), epoch(3, "c"), epoch(4, "d"), epoch(3, "x")
	own := raftstore.Line{Epoch: e4, Lineage: []raftstore.EpochStart{begun(e2, e1), begun(e3, e2), begun(e4, e3)}}
	for _, c := range []struct {
		other raftstore.Line
		want  raftstore.Epoch
	}{
		{raftstore.Line{Epoch: e1}, e2},
		{raftstore.Line{Epoch: e2, Lineage: []raftstore.EpochStart{begun(e2, e1)}}, e3},
		{raftstore.Line{Epoch: other, Lineage: []raftstore.EpochStart{begun(e2, e1), begun(other, e2)}}, e3},
		{raftstore.Line{Epoch: other, Lineage: []raftstore.EpochStart{begun(other, e2)}}, e3}, // older ones are forgotten there
	} {
		if got := parted(own, c.other); got != c.want {
			t.Errorf("from %s: %s, expected %s", c.other.Epoch, got, c.want)
		}
	}
}

// A machine that took another's place in the lineage that gives way has to join again.
func TestReplacedNodeIsListed(t *testing.T) {
	t.Parallel()
	state := func(sealTo string) *raftstore.State {
		return &raftstore.State{Nodes: map[string]raftstore.Node{"witness": {Name: "witness", Role: raftstore.Witness, SealTo: sealTo}}}
	}
	if list := differences(state("new"), state("old"), state("old")); len(list) != 1 || !strings.Contains(list[0], "replaced") {
		t.Errorf("%q", list)
	}
	if list := differences(state("old"), state("new"), state("old")); len(list) != 0 {
		t.Errorf("what the other one did: %q", list)
	}
}

// A transfer that had begun before its node was told to leave is refused at its end, and
// what is being stored at that moment is waited for.
func TestLeaveTakesNothingMore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &wires{listeners: map[string]*pipeListener{}}
		one := siteConfig(dir, 1)
		if err := Init(one, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
			t.Fatal(err)
		}
		a := startSite(t, w, one)
		defer func() { a.stop() }()
		within(t, time.Hour, "it leads", func() error { _, err := a.store.Confirm(); return err })
		store := mailStore{a.Node}
		message := func() smtpnode.Message {
			id := journal.NewID()
			body := store.NewBody(id)
			if _, err := body.Write([]byte("sealed")); err != nil {
				t.Fatal(err)
			}
			return smtpnode.Message{Meta: journal.Meta{ID: id, Mailbox: raftstore.NewMailboxID(), Key: "00112233445566aa", Received: time.Now()}, Body: body}
		}
		if _, err := store.Commit(t.Context(), false, message()); err != nil {
			t.Fatal(err)
		}
		late := message() // it comes in while the node is told to leave

		a.committing.RLock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := a.leave(ctx)
		cancel()
		if err == nil {
			t.Error("it left while a message was being stored")
		}
		a.committing.RUnlock()
		if err := a.leave(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := store.Commit(t.Context(), false, late); err == nil {
			t.Error("a message was taken by a node that leaves")
		}
		if n := total(a.journal.Waiting()).Messages; n != 1 {
			t.Errorf("%d messages wait", n)
		}
	})
}

// A site that is set back to before the other one joined learns it from that one, makes
// no change alone, and does not make the other one stop for good.
func TestSetBackToBeforeTheJoin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &wires{listeners: map[string]*pipeListener{}}
		one, two := siteConfig(dir, 1), siteConfig(dir, 2)
		if err := Init(one, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
			t.Fatal(err)
		}
		a := startSite(t, w, one)
		defer func() { a.stop() }()
		leads := func() error { _, err := a.store.Confirm(); return err }
		within(t, time.Hour, "it leads", leads)
		a.stop()
		copied := filepath.Join(dir, "copy")
		if err := os.CopyFS(copied, os.DirFS(one.State)); err != nil {
			t.Fatal(err)
		}
		a = startSite(t, w, one)
		within(t, time.Hour, "it leads", leads)
		if err := joinSite(a, two); err != nil {
			t.Fatal(err)
		}
		b := startSite(t, w, two)
		defer func() { b.stop() }()
		within(t, time.Hour, "both vote", func() error {
			if v := b.store.Status().Voters; !slices.Equal(v, []string{"msgw1", "msgw2"}) {
				return fmt.Errorf("voters %v", v)
			}
			return nil
		})
		time.Sleep(time.Hour) // they tell each other how far they are
		a.stop()
		back := *one
		back.State = copied
		a = startSite(t, w, &back)
		within(t, 3*time.Hour, "msgw1 votes no more", func() error {
			if a.store.Renounced() == nil {
				return errors.New("it was set back and does not know it")
			}
			return nil
		})
		if _, err := a.store.Propose(t.Context(), raftstore.SetWeight{Node: "msgw1", Weight: 9}); err == nil {
			t.Error("a change was made by a node that was set back")
		}
		if why := b.lineage.formerly(); why != "" {
			t.Errorf("msgw2 takes no mail any more: %s", why)
		}
	})
}

// A key of the zone that one side of a fork made is lost when that side rejoins: a DS of it must
// go.
func TestDifferencesOfSigning(t *testing.T) {
	t.Parallel()
	keys := map[string]raftstore.SigningKey{}
	for _, name := range []string{"k1", "k2"} {
		public, _, err := raftstore.NewSigningKey(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = public
	}
	state := func(phase raftstore.SigningPhase, names ...string) *raftstore.State {
		s := zoneOf(raftstore.Content{})
		s.Signing.Phase = phase
		for _, name := range names {
			s.Signing.Keys = append(s.Signing.Keys, keys[name])
		}
		return s
	}
	none := state(raftstore.Unsigned)
	for name, tc := range map[string]struct {
		own, theirs, base *raftstore.State
		want              string
	}{
		"signed here":            {state(raftstore.Signed, "k1"), none, none, dsOf("msgw.example.com", keys["k1"])},
		"signed at both":         {state(raftstore.Signed, "k1"), state(raftstore.Signed, "k2"), nil, dsOf("msgw.example.com", keys["k1"])},
		"rolled over here":       {state(raftstore.NewKey, "k1", "k2"), state(raftstore.Signed, "k1"), state(raftstore.Signed, "k1"), dsOf("msgw.example.com", keys["k2"])},
		"rolled over there":      {state(raftstore.NewDS, "k1", "k2"), state(raftstore.Signed, "k2"), state(raftstore.NewDS, "k1", "k2"), ""},
		"switched off here":      {none, state(raftstore.Signed, "k1"), state(raftstore.Signed, "k1"), "sign off"},
		"switched on there":      {none, state(raftstore.Signed, "k1"), none, ""},
		"the same at both sides": {state(raftstore.Signed, "k1"), state(raftstore.Signed, "k1"), nil, ""},
	} {
		list := differences(tc.own, tc.theirs, tc.base)
		if tc.want == "" && len(list) != 0 || tc.want != "" && (len(list) != 1 || !strings.Contains(list[0], tc.want)) {
			t.Errorf("%s: %q, want %q", name, list, tc.want)
		}
	}
}
