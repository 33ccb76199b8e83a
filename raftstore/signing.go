package raftstore

import (
	"cmp"
	"slices"
	"time"
)

// SigningPhase is where the zone is between unsigned, signed, and signed by another key.
// Each phase is safe beside the one before and the one after it, so that the sites need
// not change at the same moment.
type SigningPhase string

const (
	// Unsigned: the zone has no keys.
	Unsigned SigningPhase = ""
	// Signed: one key signs, and is the one that the parent's DS names.
	Signed SigningPhase = "signed"
	// NewKey: a second key is published and signs nothing but the keys. Until every
	// resolver has it in its set of keys, nothing may depend on it.
	NewKey SigningPhase = "new-key"
	// NewDS: the second key signs the zone, both are published, and the parent is to
	// have the DS of the second one instead of the first one's.
	NewDS SigningPhase = "new-ds"
	// Leaving: one key signs, and the parent is to have no DS.
	Leaving SigningPhase = "leaving"
)

// Signing is how the zone is signed. The private keys are sealed to the node keys of the
// sites, so that each of them signs without the others, and no witness can.
type Signing struct {
	Phase SigningPhase `json:"phase,omitempty"`
	Keys  []SigningKey `json:"keys,omitempty"` // the older one first
	// Secret holds the private keys in the order of Keys, sealed.
	Secret   []byte   `json:"secret,omitempty"`
	SealedTo []string `json:"sealed_to,omitempty"` // names of the sites, sorted
	// Clear is what Secret holds, in an encrypted backup and nowhere else: the keys that
	// Secret is sealed to are gone when the machines are gone.
	Clear   []byte `json:"clear,omitempty"`
	Version uint64 `json:"version,omitempty"` // raised whenever Keys change, or whom they are sealed to
	// MaxTTL is the highest TTL in the zone, in seconds.
	MaxTTL uint32 `json:"max_ttl,omitempty"`
	OldTTL uint32 `json:"old_ttl,omitempty"` // that of the zone before it was signed

	Since   time.Time `json:"since,omitzero"`   // when the phase began
	Reached time.Time `json:"reached,omitzero"` // when all sites were seen to have it
	// DSFrom is from when on the parent may have a DS: no resolver has anything unsigned
	// of the zone any more.
	DSFrom time.Time `json:"ds_from,omitzero"`
	// ParentSince is since when the parent is known to have the DS that the phase wants.
	ParentSince time.Time `json:"parent_since,omitzero"`
	DSTTL       uint32    `json:"ds_ttl,omitempty"` // the highest that the parent was seen to give a DS, in seconds
}

// SigningKey is the public half of a key.
type SigningKey struct {
	Public  string    `json:"public"` // as in a DNSKEY record (RFC 6605 section 4)
	Created time.Time `json:"created"`
}

// SealedSigning is the zone's private keys sealed anew, for a change of the sites.
type SealedSigning struct {
	Version  uint64   `json:"version"` // of the keys that were sealed
	Secret   []byte   `json:"secret"`
	SealedTo []string `json:"sealed_to"`
}

// Bounds and defaults of Signing.
const (
	MinMaxTTL     = 1 // seconds
	MaxMaxTTL     = 86400
	DefaultMaxTTL = 3600
	// UnknownDSTTL is what a DS is taken to live if the parent was never seen to have one.
	UnknownDSTTL = 86400
)

// Settle is how long resolvers may keep what the zone said, from when all sites say
// something else. It is twice the highest TTL: the clocks of the sites may differ, and
// what is in a file is served a moment later.
func (g Signing) Settle() time.Duration { return 2 * time.Duration(g.MaxTTL) * time.Second }

// dsLife is how long resolvers may keep a DS that the parent does not have any more.
func (g Signing) dsLife() time.Duration {
	return time.Duration(cmp.Or(g.DSTTL, UnknownDSTTL)+g.MaxTTL) * time.Second
}

// Active is the place in Keys of the key that signs the zone, and that the parent's DS is to
// name.
func (g Signing) Active() int {
	if g.Phase == NewDS {
		return 1
	}
	return 0
}

// WantsDS says whether the parent is to have a DS of the active key now.
func (g Signing) WantsDS(now time.Time) bool {
	return g.Phase != Unsigned && g.Phase != Leaving && !g.DSFrom.IsZero() && !now.Before(g.DSFrom)
}

// Ready says from when on the next phase may begin: that of a rollover from Signed, NewKey
// and NewDS, and Unsigned from Leaving. ok is false while that cannot be said since
// something is missing, which why names.
func (g Signing) Ready() (at time.Time, ok bool, why string) {
	switch {
	case g.Phase == Unsigned:
		return at, false, "the zone is not signed"
	case g.Reached.IsZero():
		return at, false, "not every site is known to have the present step"
	}
	at = g.Reached.Add(g.Settle())
	switch g.Phase {
	case Signed:
		return at, true, "until no resolver has what was answered before"
	case NewKey:
		return at, true, "until every resolver has seen the new key"
	}
	if g.ParentSince.IsZero() {
		if g.Phase == Leaving {
			return at, false, "the parent is not known to have removed the DS"
		}
		return at, false, "the parent is not known to have the new DS, and only that"
	}
	if ds := g.ParentSince.Add(g.dsLife()); ds.After(at) {
		at = ds
	}
	return at, true, "until no resolver has the old DS"
}

// tooEarly rejects a step before its time.
func (g Signing) tooEarly(now time.Time) error {
	at, ok, why := g.Ready()
	switch {
	case !ok:
		return rejectf("conflict", "too early: %s", why)
	case now.Before(at):
		return rejectf("conflict", "too early: wait until %s, %s", at.UTC().Format(time.RFC3339), why)
	}
	return nil
}

// begin is the same signing in another phase.
func (g Signing) begin(p SigningPhase, now time.Time) Signing {
	g.Phase, g.Since, g.Reached, g.ParentSince = p, now, time.Time{}, time.Time{}
	return g
}

// SignStep begins the next phase, if it is time. Keys and Secret are those of that phase,
// and are given where they change: at the first and the second key and at the end of a
// rollover.
type SignStep struct {
	From    SigningPhase  `json:"from"`
	To      SigningPhase  `json:"to"`
	Version uint64        `json:"version"` // of the keys that the change was made from
	Keys    []SigningKey  `json:"keys,omitempty"`
	Sealed  SealedSigning `json:"sealed,omitzero"`
	MaxTTL  uint32        `json:"max_ttl,omitempty"` // from Unsigned to Signed
	// OldTTL is the highest TTL of the zone while it was not signed, in seconds.
	OldTTL uint32 `json:"old_ttl,omitempty"`
	// Force ends signing whatever the parent has.
	Force bool `json:"force,omitempty"`
}

func (SignStep) op() string { return "signing.step" }
func (ch SignStep) apply(s *State, c Command) error {
	g := s.Signing
	if g.Phase != ch.From || g.Version != ch.Version {
		return rejectf("conflict", "the signing of the zone was changed at the same time; try again")
	}
	next, keys := g.begin(ch.To, c.At), len(g.Keys)
	switch [2]SigningPhase{ch.From, ch.To} {
	case [2]SigningPhase{Unsigned, Signed}:
		if ch.MaxTTL < MinMaxTTL || ch.MaxTTL > MaxMaxTTL {
			return rejectf("invalid", "max-ttl %d s: expected %d to %d", ch.MaxTTL, MinMaxTTL, MaxMaxTTL)
		}
		next.MaxTTL, next.OldTTL, keys = ch.MaxTTL, ch.OldTTL, 1
	case [2]SigningPhase{Signed, NewKey}:
		if err := g.tooEarly(c.At); err != nil {
			return err
		}
		keys = 2
	case [2]SigningPhase{NewKey, NewDS}:
		if err := g.tooEarly(c.At); err != nil {
			return err
		}
	case [2]SigningPhase{NewDS, Signed}:
		if err := g.tooEarly(c.At); err != nil {
			return err
		}
		keys = 1
	case [2]SigningPhase{Signed, Leaving}, [2]SigningPhase{Leaving, Signed}:
	case [2]SigningPhase{Leaving, Unsigned}, [2]SigningPhase{Signed, Unsigned}, [2]SigningPhase{NewKey, Unsigned}, [2]SigningPhase{NewDS, Unsigned}:
		if !ch.Force {
			if ch.From != Leaving {
				return rejectf("conflict", "the parent must have no DS before signing ends")
			}
			if err := g.tooEarly(c.At); err != nil {
				return err
			}
		}
		s.Signing = Signing{Version: g.Version + 1}
		return nil
	default:
		return rejectf("invalid", "no step leads from %s to %s", cmp.Or(ch.From, "unsigned"), cmp.Or(ch.To, "unsigned"))
	}
	if keys == len(g.Keys) {
		s.Signing = next
		return nil
	}
	// The key that stays is the same one.
	stays := min(keys, len(g.Keys))
	if len(ch.Keys) != keys || !slices.Equal(ch.Keys[:stays], g.Keys[len(g.Keys)-stays:]) {
		return rejectf("invalid", "the keys do not follow from those of before")
	}
	next.Keys, next.Version = ch.Keys, g.Version+1
	return s.seal(next, ch.Sealed)
}

// seal takes over signing with keys that were sealed anew.
func (s *State) seal(g Signing, sealed SealedSigning) error {
	switch {
	case sealed.Version != g.Version || !slices.Equal(sealed.SealedTo, s.Sites()):
		return rejectf("conflict", "the sites or the keys of the zone were changed at the same time; try again")
	case len(sealed.Secret) == 0:
		return rejectf("invalid", "the keys of the zone are missing")
	}
	g.Secret, g.SealedTo = sealed.Secret, sealed.SealedTo
	s.Signing = g
	return nil
}

// reseal takes over the zone's keys after a change of the sites. What else was sealed before
// it comes too late: a machine that took a site's place has the same name and another key.
func (s *State) reseal(sealed SealedSigning) error {
	if len(s.Signing.Keys) == 0 {
		return nil
	}
	if err := s.seal(s.Signing, sealed); err != nil {
		return err
	}
	s.Signing.Version++
	return nil
}

// SignReached says that all sites have the present phase.
type SignReached struct {
	Phase SigningPhase `json:"phase"`
	Since time.Time    `json:"since"` // of the phase
}

func (SignReached) op() string { return "signing.reached" }
func (ch SignReached) apply(s *State, c Command) error {
	g := s.Signing
	if g.Phase != ch.Phase || !g.Since.Equal(ch.Since) || g.Phase == Unsigned {
		return rejectf("conflict", "the signing of the zone was changed at the same time; try again")
	}
	if g.Reached.IsZero() {
		g.Reached = c.At
	}
	if g.DSFrom.IsZero() {
		g.DSFrom = g.Reached.Add(max(g.Settle(), time.Duration(g.OldTTL)*time.Second))
	}
	s.Signing = g
	return nil
}

// SignParent says what DS the parent has.
type SignParent struct {
	Phase SigningPhase `json:"phase"`
	Since time.Time    `json:"since"` // of the phase
	Right bool         `json:"right"` // it has what the phase wants, and nothing else
	TTL   uint32       `json:"ttl,omitempty"`
	// Said is when an operator changed it, where nobody looked; zero: seen just now.
	Said time.Time `json:"said,omitzero"`
}

func (SignParent) op() string { return "signing.parent" }
func (ch SignParent) apply(s *State, c Command) error {
	g := s.Signing
	if g.Phase != ch.Phase || !g.Since.Equal(ch.Since) || g.Phase == Unsigned {
		return rejectf("conflict", "the signing of the zone was changed at the same time; try again")
	}
	at := c.At
	if !ch.Said.IsZero() {
		at = ch.Said
		if at.After(c.At) {
			return rejectf("invalid", "%s is in the future", at.Format(time.RFC3339))
		}
		if g.Phase == NewDS && at.Before(g.Since) {
			return rejectf("invalid", "%s is before %s, when the new DS was made known", at.Format(time.RFC3339), g.Since.Format(time.RFC3339))
		}
	}
	switch {
	case !ch.Right:
		g.ParentSince = time.Time{}
		// What counts is the TTL of the DS that has to go, not that of the new one.
		g.DSTTL = max(g.DSTTL, min(ch.TTL, 7*86400)) // no resolver keeps anything longer by itself
	case g.ParentSince.IsZero(), !ch.Said.IsZero():
		g.ParentSince = at
	}
	s.Signing = g
	return nil
}

// check looks for what no row of commands leads to.
func (g Signing) check() error {
	want := map[SigningPhase]int{Unsigned: 0, Signed: 1, NewKey: 2, NewDS: 2, Leaving: 1}
	n, known := want[g.Phase]
	switch {
	case !known:
		return rejectf("invalid", "phase %q is not known", g.Phase)
	case len(g.Keys) != n:
		return rejectf("invalid", "phase %q with %d keys, expected %d", g.Phase, len(g.Keys), n)
	case n > 0 && (len(g.Secret) == 0 || g.MaxTTL < MinMaxTTL || g.MaxTTL > MaxMaxTTL):
		return rejectf("invalid", "keys without their private halves, or max_ttl %d", g.MaxTTL)
	}
	return nil
}
