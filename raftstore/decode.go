package raftstore

import (
	"fmt"

	"msgw/internal/seal"
)

// DecodeState reads a configuration as it lies in a node's file. It returns an error if
// anything in it is not known here, or if it is not one that commands can lead to: a node
// or mailbox under another name than its own, a mailbox without its one active key, more
// than two sites.
func DecodeState(b []byte) (*State, error) {
	s, err := decodeState(b)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return s, nil
}

// check looks for what no row of commands leads to.
func (s *State) check() error {
	switch {
	case s.Zone.Name == "":
		return fmt.Errorf("zone.name: missing")
	case s.Zone.MXMode != "tier" && s.Zone.MXMode != "rank":
		return fmt.Errorf("zone.mx_mode: %q, expected tier or rank", s.Zone.MXMode)
	case s.Epoch.Number == 0 || s.Epoch.ID == "":
		return fmt.Errorf("epoch: %s, expected a number from 1 and an id", s.Epoch)
	case s.CA.Certificate == "" || len(s.CA.Key) == 0:
		return fmt.Errorf("ca: missing")
	case len(s.Sites()) == 0 || len(s.Sites()) > 2:
		return fmt.Errorf("nodes: %d sites, expected one or two", len(s.Sites()))
	}
	if err := s.Copies.Policy.check(); err != nil {
		return fmt.Errorf("copies: %w", err)
	}
	if err := s.Signing.check(); err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	if err := s.checkContent(); err != nil {
		return fmt.Errorf("content: %w", err)
	}
	for name, n := range s.Nodes {
		switch {
		case name != n.Name:
			return fmt.Errorf("nodes: %s stands under the name %s", n.Name, name)
		case n.Role != Site && n.Role != Witness:
			return fmt.Errorf("node %s: role %q, expected site or witness", name, n.Role)
		case n.Weight > MaxWeight:
			return fmt.Errorf("node %s: weight %d, expected 0 to %d", name, n.Weight, MaxWeight)
		}
		if err := s.checkNode(n); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
	}
	for id, m := range s.Mailboxes {
		if id != m.ID {
			return fmt.Errorf("mailboxes: %s stands under the id %s", m.ID, id)
		}
		if err := m.check(); err != nil {
			return fmt.Errorf("mailbox %s: %w", id, err)
		}
	}
	return nil
}

func (m Mailbox) check() error {
	if err := CheckMailboxID(m.ID); err != nil {
		return err
	}
	if m.Status != Active && m.Status != Suspended && m.Status != Retired {
		return fmt.Errorf("status %q, expected active, suspended or retired", m.Status)
	}
	if err := m.Policy.check(); err != nil {
		return err
	}
	active, ids := 0, map[string]bool{}
	for _, k := range m.Keys {
		switch {
		case k.ID == "" || ids[k.ID]:
			return fmt.Errorf("key id %q: expected one of its own for each key", k.ID)
		case k.State != seal.Active && k.State != seal.DecryptOnly:
			return fmt.Errorf("key %s: state %q, expected active or decrypt-only", k.ID, k.State)
		case k.State == seal.Active:
			active++
		}
		ids[k.ID] = true
	}
	if active != 1 {
		return fmt.Errorf("%d active keys, expected one", active)
	}
	return nil
}
