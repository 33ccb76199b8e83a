package raftstore

import (
	"slices"
	"time"
)

// EpochStart says how an epoch began: which one it continues, and from where.
type EpochStart struct {
	Epoch  Epoch     `json:"epoch"`
	Parent Epoch     `json:"parent"`
	Index  uint64    `json:"index"` // of the last command of the parent that is part of this lineage
	Hash   string    `json:"hash"`  // of the parent's chain there
	At     time.Time `json:"at"`
	By     string    `json:"by"`             // the node that broke the glass
	Why    string    `json:"why"`            // in the operator's words, or the program's
	Lost   []string  `json:"lost,omitempty"` // the other members at that moment
}

// keepEpochs bounds State.Lineage.
const keepEpochs = 16

// StartEpoch begins a new epoch. It is the first command after a recovery.
type StartEpoch struct {
	Epoch  Epoch  `json:"epoch"`
	Parent Epoch  `json:"parent"`
	Why    string `json:"why"`
	// Where the parent ended, if the log could not be gone on with and counts anew.
	Index uint64 `json:"index,omitempty"`
	Hash  string `json:"hash,omitempty"`
}

func (StartEpoch) op() string { return "epoch" }
func (ch StartEpoch) apply(s *State, c Command) error {
	if ch.Parent != s.Epoch || ch.Epoch.Number != s.Epoch.Number+1 || ch.Epoch.ID == "" {
		return rejectf("conflict", "epoch %s does not follow %s", ch.Epoch, s.Epoch)
	}
	e := EpochStart{Epoch: ch.Epoch, Parent: s.Epoch, Index: s.Index, Hash: s.Hash, At: c.At, By: c.By, Why: ch.Why}
	if ch.Hash != "" {
		e.Index, e.Hash = ch.Index, ch.Hash
	}
	for _, n := range s.SortedNodes() {
		if n.Name != c.By {
			e.Lost = append(e.Lost, n.Name)
		}
	}
	s.Epoch = ch.Epoch
	if s.Lineage = append(slices.Clone(s.Lineage), e); len(s.Lineage) > keepEpochs {
		s.Lineage = slices.Clone(s.Lineage[len(s.Lineage)-keepEpochs:])
	}
	return nil
}

// Line is what a node tells of the lineage of its configuration.
type Line struct {
	Epoch   Epoch        `json:"epoch"`
	Index   uint64       `json:"index"`
	Hash    string       `json:"hash"`
	Lineage []EpochStart `json:"lineage,omitempty"`
}

// Line returns that of a state.
func (s *State) Line() Line { return Line{s.Epoch, s.Index, s.Hash, s.Lineage} }

// Relation of one node's configuration to another's.
type Relation string

const (
	Same       Relation = "same"       // one epoch: raft brings them together
	Ancestor   Relation = "ancestor"   // the other one continues this one: this node rejoins
	Descendant Relation = "descendant" // this one continues the other one: the other node rejoins
	Fork       Relation = "fork"       // each has what the other lacks: an operator chooses
)

// Relate returns what l is to other.
func (l Line) Relate(other Line) Relation {
	switch {
	case l.Epoch == other.Epoch:
		return Same
	case l.partOf(other):
		return Ancestor
	case other.partOf(l):
		return Descendant
	}
	return Fork
}

// partOf returns whether all of l is part of other: other left l's epoch where l ends,
// or later.
func (l Line) partOf(other Line) bool {
	i := slices.IndexFunc(other.Lineage, func(e EpochStart) bool { return e.Parent == l.Epoch })
	if i < 0 {
		return false
	}
	e := other.Lineage[i]
	return l.Index < e.Index || l.Index == e.Index && l.Hash == e.Hash
}
