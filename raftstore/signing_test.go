package raftstore

import (
	"crypto/ecdsa"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// signingTest is a state with two sites whose signing is changed.
type signingTest struct {
	t   *testing.T
	s   *State
	now time.Time
}

func newSigningTest(t *testing.T) *signingTest {
	return &signingTest{t, &State{Cluster: "c", Nodes: map[string]Node{"a": {Name: "a", Role: Site}, "b": {Name: "b", Role: Site}, "w": {Name: "w", Role: Witness}},
		Invites: map[string]Invite{}}, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// do makes a change and returns what it was rejected for, or "made".
func (x *signingTest) do(ch Change) string {
	x.t.Helper()
	next := x.s.clone()
	out := next.outcome(newCommand("a", ch, x.now), ch, 1)
	if out.Rejection != nil {
		return out.Rejection.Code + ": " + out.Rejection.Message
	}
	x.s = next
	return "made"
}

// step is a step to a phase with keys of these names.
func (x *signingTest) step(to SigningPhase, keys ...string) SignStep {
	g := x.s.Signing
	ch := SignStep{From: g.Phase, To: to, Version: g.Version, MaxTTL: 3600, OldTTL: 10000}
	for _, k := range keys {
		ch.Keys = append(ch.Keys, SigningKey{Public: k})
	}
	if keys != nil {
		ch.Sealed = SealedSigning{g.Version + 1, []byte(strings.Join(keys, "+")), []string{"a", "b"}}
	}
	return ch
}

func (x *signingTest) reached() SignReached {
	return SignReached{x.s.Signing.Phase, x.s.Signing.Since}
}

func (x *signingTest) parent(right bool) SignParent {
	return SignParent{Phase: x.s.Signing.Phase, Since: x.s.Signing.Since, Right: right, TTL: 7200}
}

func (x *signingTest) expect(want string, ch Change) {
	x.t.Helper()
	if got := x.do(ch); !strings.HasPrefix(got, want) {
		x.t.Fatalf("%+v in %s: %s, want %s", ch, x.s.Signing.Phase, got, want)
	}
	if err := x.s.Signing.check(); err != nil {
		x.t.Fatal(err)
	}
}

func TestRolloverSteps(t *testing.T) {
	t.Parallel()
	x := newSigningTest(t)
	x.expect("conflict: the signing", x.reached())
	x.expect("invalid: no step leads from unsigned to new-key", x.step(NewKey, "k1", "k2"))
	bad := x.step(Signed, "k1")
	bad.MaxTTL = 0
	x.expect("invalid: max-ttl 0 s: expected 1 to 86400", bad)
	x.expect("invalid: the keys do not follow", x.step(Signed, "k1", "k2"))
	x.expect("made", x.step(Signed, "k1"))
	x.expect("conflict: too early: not every site", x.step(NewKey, "k1", "k2"))
	x.now = x.now.Add(time.Minute)
	x.expect("made", x.reached())
	first := x.s.Signing
	if want := x.now.Add(10000 * time.Second); !first.DSFrom.Equal(want) || first.WantsDS(want.Add(-1)) || !first.WantsDS(want) {
		t.Errorf("DS from %v, expected %v: unsigned answers lived longer than signed ones do", first.DSFrom, want)
	}
	x.now = x.now.Add(time.Minute)
	x.expect("made", x.reached()) // again: the first time counts
	if !x.s.Signing.Reached.Equal(first.Reached) {
		t.Error("reached twice")
	}
	x.expect("conflict: too early: wait until 2027-01-01T02:01:00Z", x.step(NewKey, "k1", "k2"))
	x.now = first.Reached.Add(2 * time.Hour)
	x.expect("invalid: the keys do not follow", x.step(NewKey, "k2", "k3")) // the old one is gone
	stale := x.step(NewKey, "k1", "k2")
	stale.Version--
	x.expect("conflict: the signing", stale)
	x.expect("made", x.step(NewKey, "k1", "k2"))
	if g := x.s.Signing; g.Active() != 0 || !g.WantsDS(x.now.Add(time.Hour)) {
		t.Errorf("%+v", g)
	}
	x.expect("conflict: too early: not every site", x.step(NewDS))
	x.expect("made", x.reached())
	x.now = x.now.Add(2*time.Hour - time.Second)
	x.expect("conflict: too early: wait", x.step(NewDS))
	x.now = x.now.Add(time.Second)
	x.expect("made", x.step(NewDS))
	if x.s.Signing.Active() != 1 {
		t.Error("the old key signs")
	}
	x.expect("made", x.reached())
	x.now = x.now.Add(100 * time.Hour)
	x.expect("conflict: too early: the parent is not known", x.step(Signed, "k2"))
	x.expect("made", x.parent(true))
	x.expect("made", x.parent(false)) // one of its servers has the old one again
	x.now = x.now.Add(100 * time.Hour)
	x.expect("conflict: too early: the parent is not known", x.step(Signed, "k2"))
	x.expect("made", x.parent(true))
	x.expect("conflict: too early: wait", x.step(Signed, "k2"))
	x.now = x.now.Add(3*time.Hour - time.Second) // the DS lives two, and the zone one
	x.expect("made", x.parent(true))
	x.expect("conflict: too early: wait", x.step(Signed, "k2"))
	x.now = x.now.Add(time.Second)
	x.expect("invalid: the keys do not follow", x.step(Signed, "k1"))
	x.expect("made", x.step(Signed, "k2"))
	if g := x.s.Signing; len(g.Keys) != 1 || string(g.Secret) != "k2" || g.Version != 3 {
		t.Errorf("%+v", g)
	}
}

func TestUnsigningSteps(t *testing.T) {
	t.Parallel()
	x := newSigningTest(t)
	x.expect("made", x.step(Signed, "k1"))
	x.expect("conflict: the parent must have no DS", x.step(Unsigned))
	x.expect("made", x.step(Leaving))
	x.expect("made", x.step(Signed)) // taken back
	x.expect("made", x.step(Leaving))
	x.expect("made", x.reached())
	x.now = x.now.Add(1000 * time.Hour)
	x.expect("conflict: too early: the parent is not known to have removed", x.step(Unsigned))
	// The operator's word, and no look at the DS ever: it may live a day.
	said := SignParent{Phase: Leaving, Since: x.s.Signing.Since, Right: true, Said: x.now.Add(time.Minute)}
	x.expect("invalid: 2027-02-11T16:01:00Z is in the future", said)
	said.Said = x.now.Add(-time.Hour)
	x.expect("made", said)
	x.expect("conflict: too early: wait until 2027-02-12T16:00:00Z", x.step(Unsigned))
	x.now = x.now.Add(24 * time.Hour)
	x.expect("made", x.step(Unsigned))
	if g := x.s.Signing; g.Keys != nil || g.Secret != nil || g.Version != 2 {
		t.Errorf("%+v", g)
	}
	// By force from anywhere.
	x.expect("made", x.step(Signed, "k1"))
	forced := x.step(Unsigned)
	forced.Force = true
	x.expect("made", forced)
}

// Whoever joins or is removed while the zone is signed comes with keys sealed anew, and
// those that were sealed before a change of the keys do not count.
func TestSigningFollowsTheSites(t *testing.T) {
	t.Parallel()
	x := newSigningTest(t)
	x.expect("made", x.step(Signed, "k1"))
	b := x.s.Nodes["b"]
	b.Leaving = true
	x.s.Nodes["b"] = b
	ca := CA{SealedTo: []string{"a"}}
	x.expect("conflict: the sites or the keys", RemoveNode{Name: "b", CA: ca})
	x.expect("conflict: the sites or the keys", RemoveNode{Name: "b", CA: ca, Signing: SealedSigning{0, []byte("x"), []string{"a"}}})
	x.expect("conflict: the sites or the keys", RemoveNode{Name: "b", CA: ca, Signing: SealedSigning{1, []byte("x"), []string{"a", "b"}}})
	x.expect("invalid: the keys of the zone are missing", RemoveNode{Name: "b", CA: ca, Signing: SealedSigning{1, nil, []string{"a"}}})
	x.expect("made", RemoveNode{Name: "b", CA: ca, Signing: SealedSigning{1, []byte("x"), []string{"a"}}})
	if g := x.s.Signing; string(g.Secret) != "x" || !slices.Equal(g.SealedTo, []string{"a"}) || g.Version != 2 {
		t.Errorf("%+v", g)
	}
}

// Keys that were sealed while another machine was the site of that name are not taken over:
// the machine that has its place now could not open them.
func TestSigningFollowsAReplacement(t *testing.T) {
	t.Parallel()
	x := newSigningTest(t)
	x.s.Nodes["b"] = Node{Name: "b", ID: "b1", Role: Site, Host: "b.example.com"}
	x.s.Invites["i"] = Invite{ID: "i", Role: Site, Expires: x.now.Add(time.Hour), Replaces: "b", ReplacesID: "b1"}
	x.expect("made", x.step(Signed, "k1"))
	x.expect("made", x.reached())
	x.now = x.now.Add(3 * time.Hour)
	x.s.Invites["i"] = Invite{ID: "i", Role: Site, Expires: x.now.Add(time.Hour), Replaces: "b", ReplacesID: "b1"}
	w := x.s.Nodes["w"]
	w.Leaving = true
	x.s.Nodes["w"] = w
	sites := []string{"a", "b"}
	rollover := x.step(NewKey, "k1", "k2")
	removal := RemoveNode{Name: "w", CA: CA{SealedTo: sites}, Signing: SealedSigning{x.s.Signing.Version, []byte("old b"), sites}}
	x.expect("made", JoinNode{Invite: "i", Node: Node{Name: "b", ID: "b2", Role: Site, Peer: "192.0.2.2:8451", Host: "b.example.com"}, CA: CA{SealedTo: sites},
		Signing: SealedSigning{x.s.Signing.Version, []byte("new b"), sites}})
	x.expect("conflict: the signing of the zone was changed", rollover)
	x.expect("conflict: the sites or the keys", removal)
	if g := x.s.Signing; string(g.Secret) != "new b" {
		t.Errorf("sealed to %q", g.Secret)
	}
}

func TestSigningKeys(t *testing.T) {
	t.Parallel()
	public, key, err := NewSigningKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := NewSigningKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, err := EncodeSigningKeys([]*ecdsa.PrivateKey{key})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := ParseSigningKeys(b, []SigningKey{public}); err != nil || !keys[0].Equal(key) {
		t.Error(err)
	}
	for want, f := range map[string]func() error{
		"is not that of its public half": func() error { _, err := ParseSigningKeys(b, []SigningKey{other}); return err },
		"1 private keys of the zone":     func() error { _, err := ParseSigningKeys(b, nil); return err },
		"do not parse":                   func() error { _, err := ParseSigningKeys(b[:5], []SigningKey{public}); return err },
		"does not parse as ECDSA":        func() error { _, err := ParseSigningKeys([]byte(`["AAAA"]`), []SigningKey{public}); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), want) || errors.Unwrap(err) != nil {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
