package raftstore

import (
	"encoding/json"
	"strings"
	"testing"

	"msgw/internal/seal"
)

// What no row of commands leads to is not a configuration, though it parses.
func TestDecodeState(t *testing.T) {
	t.Parallel()
	const id = "mbx-2a20342e96294505a35eb5c8364eb67c"
	sound := func() *State {
		return &State{Format: 1, Cluster: "c", Epoch: Epoch{1, "e"}, Zone: Zone{Name: "msgw.example.com", MXMode: "tier"}, CA: CA{Certificate: "x", Key: []byte("x")},
			Nodes: map[string]Node{"a": {Name: "a", ID: "1", Role: Site, Peer: "192.0.2.1:1"}, "b": {Name: "b", ID: "2", Role: Site, Peer: "192.0.2.2:1"},
				"w": {Name: "w", ID: "3", Role: Witness, Peer: "192.0.2.3:1"}},
			Mailboxes: map[string]Mailbox{id: {ID: id, Status: Retired, Keys: []seal.Key{{ID: "1", State: seal.Active}, {ID: "2", State: seal.DecryptOnly}}}},
			Invites:   map[string]Invite{}}
	}
	node := func(name string, change func(*Node)) func(*State) {
		return func(s *State) {
			n := s.Nodes[name]
			change(&n)
			s.Nodes[name] = n
		}
	}
	mailbox := func(change func(*Mailbox)) func(*State) {
		return func(s *State) {
			m := s.Mailboxes[id]
			change(&m)
			s.Mailboxes[id] = m
		}
	}
	for says, change := range map[string]func(*State){
		"":                                 func(*State) {},
		"format 2 is not known here":       func(s *State) { s.Format = 2 },
		"not a complete configuration":     func(s *State) { s.Cluster = "" },
		"zone.name: missing":               func(s *State) { s.Zone.Name = "" },
		`zone.mx_mode: "x"`:                func(s *State) { s.Zone.MXMode = "x" },
		"epoch: 0-e":                       func(s *State) { s.Epoch.Number = 0 },
		"ca: missing":                      func(s *State) { s.CA.Key = nil },
		"nodes: 0 sites":                   func(s *State) { clear(s.Nodes) },
		"nodes: 3 sites":                   node("w", func(n *Node) { n.Role = Site }),
		"nodes: x stands under the name a": node("a", func(n *Node) { n.Name = "x" }),
		`node w: role "x"`:                 node("w", func(n *Node) { n.Role = "x" }),
		"node a: weight 1001":              node("a", func(n *Node) { n.Weight = 1001 }),
		"has the same server id":           node("a", func(n *Node) { n.ID = "2" }),
		"copies: policy":                   func(s *State) { s.Copies.Policy = "x" },
		"stands under the id " + id:        mailbox(func(m *Mailbox) { m.ID = "x" }),
		`mailbox id "x"`:                   func(s *State) { s.Mailboxes["x"] = Mailbox{ID: "x"} },
		`status "x"`:                       mailbox(func(m *Mailbox) { m.Status = "x" }),
		`: policy "x"`:                     mailbox(func(m *Mailbox) { m.Policy = "x" }),
		`key id "1"`:                       mailbox(func(m *Mailbox) { m.Keys[1].ID = "1" }),
		`key 2: state "x"`:                 mailbox(func(m *Mailbox) { m.Keys[1].State = "x" }),
		"2 active keys":                    mailbox(func(m *Mailbox) { m.Keys[1].State = seal.Active }),
		"0 active keys":                    mailbox(func(m *Mailbox) { m.Keys = nil }),
	} {
		s := sound()
		change(s)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeState(b)
		switch {
		case says == "" && (err != nil || got.Zone != s.Zone || len(got.Mailboxes) != 1):
			t.Errorf("%+v, %v", got, err)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("%v, expected %s", err, says)
		}
	}
	for _, text := range []string{"", "{}", `{"format":1,"x":1}`, "null"} {
		if _, err := DecodeState([]byte(text)); err == nil {
			t.Errorf("%q is taken for a configuration", text)
		}
	}
}
