package configsim

import (
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"msgw/internal/seal"
	"msgw/raftstore"
)

// cell is what the configuration holds under one key: the weight of a node, or a mailbox.
type cell struct {
	Exists  bool
	Value   string // the weight, or the id of the active key
	Version uint64 // of a mailbox's keys
	Policy  string // of a mailbox
}

// op is a change of one cell, or a look at it.
type op struct {
	Kind    string // weight, create, keys, policy or read
	Key     string // node/NAME or mailbox/ID
	Value   string
	Version uint64 // that keys are changed from
}

// answer is what came of an op.
type answer struct {
	Unknown bool   // it may be made at any time from the call on, or never
	Code    string // of the rejection; empty: made
	Cell    cell   // that was read
}

// expected returns what an op does to a cell, and the code that it answers.
func (o op) expected(c cell) (cell, string) {
	switch {
	case o.Kind == "create" && c.Exists:
		return c, "exists"
	case o.Kind == "create":
		return cell{Exists: true, Value: o.Value, Version: 1}, ""
	case !c.Exists:
		return c, "missing"
	case o.Kind == "keys" && o.Version != c.Version:
		return c, "conflict"
	case o.Kind == "keys":
		c.Value, c.Version = o.Value, c.Version+1
	case o.Kind == "policy":
		c.Policy = o.Value
	case o.Kind == "weight":
		c.Value = o.Value
	}
	return c, ""
}

// model is the configuration as a set of cells, each independent of the others.
func model(start map[string]cell) porcupine.Model {
	return porcupine.Model{
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			var keys []string
			for _, o := range all {
				k := o.Input.(op).Key
				if by[k] == nil {
					keys = append(keys, k)
				}
				by[k] = append(by[k], o)
			}
			slices.Sort(keys)
			var parts [][]porcupine.Operation
			for _, k := range keys {
				// What the cell held at first is written before all else.
				first := porcupine.Operation{Input: op{Kind: "start", Key: k}, Output: answer{Cell: start[k]}, Call: -2, Return: -1}
				parts = append(parts, append([]porcupine.Operation{first}, by[k]...))
			}
			return parts
		},
		Init: func() any { return cell{} },
		Step: func(state, input, output any) (bool, any) {
			c, o, a := state.(cell), input.(op), output.(answer)
			switch o.Kind {
			case "start":
				return true, a.Cell
			case "read":
				return a.Cell == c, c
			}
			next, code := o.expected(c)
			return a.Unknown || a.Code == code, next
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	}
}

// cells returns what a state holds, by key.
func cells(s *raftstore.State) map[string]cell {
	all := map[string]cell{}
	for name, n := range s.Nodes {
		all["node/"+name] = cell{Exists: true, Value: fmt.Sprint(n.Weight)}
	}
	for id, m := range s.Mailboxes {
		k, _ := m.ActiveKey()
		all["mailbox/"+id] = cell{Exists: true, Value: k.ID, Version: m.Version, Policy: string(m.Policy)}
	}
	return all
}

// keysWith returns a mailbox's keys with a new one that is active.
func keysWith(m raftstore.Mailbox, id string) []seal.Key {
	keys := slices.Clone(m.Keys)
	for i := range keys {
		keys[i].State = seal.DecryptOnly
	}
	return append(keys, newKey(id))
}

func newKey(id string) seal.Key { return seal.Key{ID: id, Recipient: "r-" + id, State: seal.Active} }

// change returns an op as the store takes it; m is the mailbox as it was read.
func (o op) change(name string, number uint32, m raftstore.Mailbox) raftstore.Change {
	switch o.Kind {
	case "weight":
		return raftstore.SetWeight{Node: name, Weight: number}
	case "create":
		return raftstore.CreateMailbox{ID: name, Key: newKey(o.Value)}
	case "keys":
		return raftstore.SetKeys{ID: name, Version: o.Version, Keys: keysWith(m, o.Value)}
	default:
		return raftstore.SetPolicy{ID: name, Policy: raftstore.Policy(o.Value)}
	}
}

// history is what was asked and answered, and what was refused.
type history struct {
	start   map[string]cell // what there was before
	ops     []porcupine.Operation
	at      map[place]op               // ops that were committed
	last    map[raftstore.Epoch]uint64 // greatest index that an answer told, by epoch
	refused map[string]bool            // values of changes that were not made
	known   map[string]bool            // values that were served anywhere
}

func newHistory() history {
	return history{at: map[place]op{}, last: map[raftstore.Epoch]uint64{}, refused: map[string]bool{}, known: map[string]bool{}}
}

// saw takes note of the values in a state that was served.
func (h *history) saw(s *raftstore.State) {
	for _, n := range s.Nodes {
		h.known[fmt.Sprint(n.Weight)] = true
	}
	for _, m := range s.Mailboxes {
		for _, k := range m.Keys {
			h.known[k.ID] = true
		}
	}
}

// forever is later than any history.
const forever = int64(1) << 62

func (h *history) add(client int, o op, a answer, call, ret time.Time) {
	end := ret.UnixNano()
	if a.Unknown {
		end = forever
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: o, Output: a, Call: call.UnixNano(), Return: end})
}
