// Package raftstore holds the replicated configuration: nodes, mailboxes, zone
// settings. Commands go through raft; every node keeps the resulting state in a
// file of its own, boots from it, and serves from it without quorum.
//
// It promises: a command that Propose reports as applied is on stable storage at a
// majority and in this node's file; a command is applied once, however often it is
// sent; ErrUnknown is reported when the outcome is not known, never a failure that
// may come true later. The state is plain data that no one changes once published.
//
// DESIGN.md states the invariants and what happens at each failure.
package raftstore

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"msgw/internal/seal"
)

// Role of a node.
type Role string

const (
	Site    Role = "site"    // takes mail, answers DNS, hands mail over
	Witness Role = "witness" // votes and watches; holds only sealed values
)

// Epoch is the lineage of a cluster's configuration. It changes only when a
// survivor breaks the glass; nodes of different epochs do not talk.
type Epoch struct {
	Number uint64 `json:"number"`
	ID     string `json:"id"` // random, 16 hex digits
}

// String is the form used in protocol names.
func (e Epoch) String() string { return fmt.Sprintf("%d-%s", e.Number, e.ID) }

// Node is a member.
type Node struct {
	Name     string    `json:"name"`
	ID       string    `json:"id"` // raft server id, random per installation
	Role     Role      `json:"role"`
	Host     string    `json:"host"`           // public host name; empty for a witness
	Peer     string    `json:"peer"`           // host:port of the peer port
	V4       []string  `json:"ipv4,omitempty"` // public addresses
	V6       []string  `json:"ipv6,omitempty"`
	SMTPPort int       `json:"smtp_port,omitempty"` // public ports, for probes
	DNSPort  int       `json:"dns_port,omitempty"`
	Weight   uint32    `json:"weight"`
	SealTo   string    `json:"seal_to"` // the node key's public half
	Joined   time.Time `json:"joined"`
	// Leaving is set while the node is being removed: it votes no more.
	Leaving bool `json:"leaving,omitempty"`
}

// MailboxStatus says what a mailbox does.
type MailboxStatus string

const (
	Active    MailboxStatus = "active"
	Suspended MailboxStatus = "suspended" // takes no mail (450), hands over what waits
	Retired   MailboxStatus = "retired"   // deleted; kept until no site holds anything of it
)

// Policy says how many copies a message has before its sender is told that it was
// taken.
type Policy string

const (
	// Available: two, or one while the other site is known to be gone.
	Available Policy = "available"
	// Strict: always two.
	Strict Policy = "strict"
)

// Mailbox is a journal address and its keys. It holds no secret in clear.
type Mailbox struct {
	ID           string        `json:"id"` // mbx- and 32 hex digits
	Description  string        `json:"description,omitempty"`
	Status       MailboxStatus `json:"status"`
	Policy       Policy        `json:"policy,omitempty"` // empty: that of Copies
	Keys         []seal.Key    `json:"keys"`
	Version      uint64        `json:"version"` // raised by every change of the keys
	Created      time.Time     `json:"created"`
	RetiredAt    time.Time     `json:"retired_at,omitzero"`
	Restrictions Restrictions  `json:"restrictions,omitzero"`
}

// ActiveKey returns the key that seals new messages.
func (m Mailbox) ActiveKey() (seal.Key, bool) {
	i := slices.IndexFunc(m.Keys, func(k seal.Key) bool { return k.State == seal.Active })
	if i < 0 {
		return seal.Key{}, false
	}
	return m.Keys[i], true
}

// Invite lets one node join once.
type Invite struct {
	ID      string    `json:"id"`
	Secret  string    `json:"secret_sha256"` // hex
	Role    Role      `json:"role"`
	Expires time.Time `json:"expires"`
	// Replaces names the member whose place the new node takes, and its server id.
	Replaces   string `json:"replaces,omitempty"`
	ReplacesID string `json:"replaces_id,omitempty"`
}

// Former is a server id that no member has any more.
type Former struct {
	Name string    `json:"name"`
	ID   string    `json:"id"`
	Why  string    `json:"why"` // replaced, removed or rejoined
	At   time.Time `json:"at"`
}

// Zone holds the settings of the delegated zone.
type Zone struct {
	Name    string `json:"name"`    // without a final dot, lower case
	Contact string `json:"contact"` // mail address of the hostmaster
	MXMode  string `json:"mx_mode"` // tier or rank
}

// CA is the cluster's certificate authority. Its key is sealed to the node keys of
// the sites, so that each of them can issue without the others.
type CA struct {
	Certificate string   `json:"certificate"` // PEM
	Key         []byte   `json:"key"`         // sealed PKCS #8
	SealedTo    []string `json:"sealed_to"`   // names of the sites, sorted
}

// ACME says where publicly trusted certificates come from; empty: nowhere.
type ACME struct {
	Directory string `json:"directory,omitempty"`
	Email     string `json:"email,omitempty"`
	Roots     string `json:"roots,omitempty"`   // PEM that the directory's own certificate is checked against
	Profile   string `json:"profile,omitempty"` // of the directory's; empty: its default
	Chain     string `json:"chain,omitempty"`   // common name of an issuer that the chain is to have, if there is a choice
}

// Copies says how the sites keep copies for each other. Zero fields mean the defaults.
type Copies struct {
	Policy Policy `json:"policy,omitempty"` // of mailboxes without one of their own
	// From the last sign of the other site until it counts as gone: when it refuses
	// connections, and when it is silent.
	Refused time.Duration `json:"refused,omitempty"`
	Silent  time.Duration `json:"silent,omitempty"`
	// Wait is how long a sender is kept waiting for the second copy, at most.
	Wait time.Duration `json:"wait,omitempty"`
	// Silence after which the other site's messages are handed over here: without and
	// with the witness's word that it does not reach it either.
	Adopt          time.Duration `json:"adopt,omitempty"`
	AdoptConfirmed time.Duration `json:"adopt_confirmed,omitempty"`
	// Return is how long a site waits after its start to hear what the other one handed
	// over, at most.
	Return time.Duration `json:"return,omitempty"`
	// Bandwidth for copies that no sender waits for, in octets per second; 0: not
	// bounded.
	Bandwidth int64 `json:"bandwidth,omitempty"`
}

// State is the whole configuration at one index. Published states are immutable.
type State struct {
	Format       int                `json:"format"` // 1
	Cluster      string             `json:"cluster"`
	Epoch        Epoch              `json:"epoch"`
	Lineage      []EpochStart       `json:"lineage,omitempty"` // how the epochs came about, the last ones
	Revision     uint32             `json:"revision"`          // raised by every change; the zone's SOA serial
	Index        uint64             `json:"index"`             // of the last command applied, in the raft log
	Term         uint64             `json:"term"`              // of that command
	Hash         string             `json:"hash"`              // chain over all commands and outcomes, hex SHA-256
	Zone         Zone               `json:"zone"`
	CA           CA                 `json:"ca"`
	ACME         ACME               `json:"acme"`
	Copies       Copies             `json:"copies,omitzero"`
	Restrictions Restrictions       `json:"restrictions,omitzero"`
	Signing      Signing            `json:"signing,omitzero"`
	Content      Content            `json:"content,omitzero"` // of the zone
	Nodes        map[string]Node    `json:"nodes"`
	Former       []Former           `json:"former,omitempty"` // the last ones
	Mailboxes    map[string]Mailbox `json:"mailboxes"`
	Invites      map[string]Invite  `json:"invites"`
	Recent       []Outcome          `json:"recent"` // of the last commands, to apply each once
}

// NodeByID returns the member with a raft server id.
func (s *State) NodeByID(id string) (Node, bool) {
	for _, n := range s.Nodes {
		if n.ID == id {
			return n, true
		}
	}
	return Node{}, false
}

// SortedNodes returns the members by name.
func (s *State) SortedNodes() []Node {
	nodes := make([]Node, 0, len(s.Nodes))
	for _, name := range slices.Sorted(maps.Keys(s.Nodes)) {
		nodes = append(nodes, s.Nodes[name])
	}
	return nodes
}

// Sites returns the names of the members that take mail, sorted.
func (s *State) Sites() []string {
	var names []string
	for _, n := range s.SortedNodes() {
		if n.Role == Site {
			names = append(names, n.Name)
		}
	}
	return names
}

// Strict returns whether messages for a mailbox must have two copies.
func (s *State) Strict(m Mailbox) bool {
	if m.Policy != "" {
		return m.Policy == Strict
	}
	return s.Copies.Policy == Strict
}

// AllStrict returns whether messages for any mailbox must have two copies.
func (s *State) AllStrict() bool {
	if s.Copies.Policy != Strict {
		return false
	}
	for _, m := range s.Mailboxes {
		if m.Status != Retired && !s.Strict(m) {
			return false
		}
	}
	return true
}

// clone copies what commands change; the values in the maps are replaced whole.
func (s *State) clone() *State {
	c := *s
	c.Nodes, c.Mailboxes, c.Invites = maps.Clone(s.Nodes), maps.Clone(s.Mailboxes), maps.Clone(s.Invites)
	c.Recent = slices.Clone(s.Recent)
	return &c
}

// link continues the hash chain with a command and what came of it: nodes that
// disagree on either are told apart. The words of a rejection do not count; another
// version may choose others.
func link(previous string, command []byte, out Outcome) string {
	code := "made"
	if out.Rejection != nil {
		code = out.Rejection.Code
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %q %d %s\n", previous, len(command), out.Request, out.Index, code)
	h.Write(command)
	return hex.EncodeToString(h.Sum(nil))
}

func decodeState(b []byte) (*State, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, err // not whole
	}
	if head.Format != stateFormat {
		return nil, fmt.Errorf("format %d is not known here: %w", head.Format, errNotUnderstood)
	}
	s := &State{}
	if err := decodeStrictly(b, s); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotUnderstood, err)
	}
	if s.Nodes == nil || s.Mailboxes == nil || s.Invites == nil || s.Cluster == "" {
		return nil, fmt.Errorf("not a complete configuration")
	}
	return s, nil
}

const stateFormat = 1
