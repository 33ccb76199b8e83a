package node

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/journal"
	"msgw/internal/peer"
	"msgw/raftstore"
)

func twoSites() *raftstore.State {
	return &raftstore.State{Index: 50, Nodes: map[string]raftstore.Node{"a": {Name: "a", Role: raftstore.Site}, "b": {Name: "b", Role: raftstore.Site}, "w": {Name: "w", Role: raftstore.Witness}},
		Mailboxes: map[string]raftstore.Mailbox{"active": {Status: raftstore.Active}, "suspended": {Status: raftstore.Suspended},
			"retired": {Status: raftstore.Retired, RetiredAt: time.Now()}}}
}

// A deleted mailbox is due a day after every site was seen to know of it, and not a day
// after it was deleted: a site that was cut off takes mail for it until it hears.
func TestRetirements(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, r := twoSites(), retirements{}
		now := map[string]uint64{"a": 50} // b is cut off
		pass := func(d time.Duration, want ...string) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Hour) {
				if got := r.note(time.Now(), s, now); !slices.Equal(got, want) {
					t.Fatalf("due %q, expected %q", got, want)
				}
			}
		}
		pass(30 * 24 * time.Hour)
		now["b"] = 49 // it is back, and has not heard of it
		pass(2 * 24 * time.Hour)
		now["b"] = 50
		pass(25 * time.Hour)
		pass(time.Hour, "retired")
		delete(now, "b") // gone again: nobody can say what it holds
		pass(3 * 24 * time.Hour)
		now["b"] = 50
		pass(time.Hour, "retired")
		// Later changes do not put it off.
		s.Index, now["a"], now["b"] = 70, 70, 60
		pass(time.Hour, "retired")
		// A site that is set back to before the deletion takes mail for it once more.
		now["b"] = 40
		pass(time.Hour)
		now["b"] = 70
		pass(25 * time.Hour)
		pass(time.Hour, "retired")

		s.Mailboxes["another"] = raftstore.Mailbox{Status: raftstore.Retired}
		pass(25*time.Hour, "retired")
		pass(time.Hour, "another", "retired")
		delete(s.Mailboxes, "retired")
		pass(time.Hour, "another")
		if len(r) != 1 {
			t.Errorf("remembered %v", r)
		}
	})
}

// Only what no site holds, in any log, is forgotten.
func TestEmpty(t *testing.T) {
	t.Parallel()
	due := []string{"mbx-1", "mbx-2"}
	one := map[string]journal.Waiting{"mbx-1": {Messages: 1}}
	for name, tc := range map[string]struct {
		sites []siteHoldings
		want  []string
	}{
		"nothing anywhere":     {[]siteHoldings{{}, {}}, due},
		"own":                  {[]siteHoldings{{}, {holdings: holdings{Own: one}}}, due[1:]},
		"a copy":               {[]siteHoldings{{holdings: holdings{Copies: one}}, {}}, due[1:]},
		"an adopted copy":      {[]siteHoldings{{holdings: holdings{Copies: one, Adopted: true}}, {}}, due[1:]},
		"what cannot be read":  {[]siteHoldings{{}, {damaged: 1}}, nil},
		"damage and a message": {[]siteHoldings{{damaged: 1}, {holdings: holdings{Own: one}}}, nil},
	} {
		if got := empty(due, tc.sites); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, expected %q", name, got, tc.want)
		}
	}
}

// A node that answers, with whatever, is not cut off.
func TestReached(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		nil:                      true,
		&peer.Refusal{Code: 503}: true,
		fmt.Errorf("msgw2: %w", &peer.Refusal{Code: 500}):      true,
		fmt.Errorf("%w: msgw2: refused", raftstore.ErrNotSent): false,
		errors.New("msgw2: connection reset"):                  false,
	} {
		if got := reached(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
