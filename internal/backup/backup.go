// Package backup is the form in which a configuration, and the messages that wait with
// it, leave the machine: one stream that is written while the node runs, read by stock
// programs (tar, sha256sum, age), and read back here.
//
// It promises: what Read returns without an error is, octet for octet, what a Writer was
// given before its Close returned nil; a stream that was cut short anywhere, or in which
// a member was changed, is an error. A Writer never puts the CA's key into a stream that is not
// encrypted. Reading takes memory for the configuration, and some 150 octets for each
// message, never for what a stream only claims to hold.
//
// DESIGN.md describes the format.
package backup

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"msgw/internal/journal"
	"msgw/raftstore"
)

var (
	// ErrBroken says that a stream is not a backup, or not what was written.
	ErrBroken = errors.New("not a whole backup")
	// ErrEncrypted says that a stream is encrypted and no identity was given.
	ErrEncrypted = errors.New("the backup is encrypted")
	// ErrIdentity says that a stream is encrypted to others than the identities given.
	ErrIdentity = errors.New("the backup is encrypted to other recipients than these identities")
)

// Format is the number of the form that is written here.
const Format = 1

// Head is what a backup says of itself, in its first member.
type Head struct {
	Format   int             `json:"format"`
	Made     time.Time       `json:"made"` // when the configuration was taken
	By       string          `json:"by"`   // version of msgw
	Cluster  string          `json:"cluster"`
	Node     string          `json:"node"` // at which it was made
	Zone     string          `json:"zone"`
	Epoch    raftstore.Epoch `json:"epoch"`
	Revision uint32          `json:"revision"`
	Index    uint64          `json:"index"`
	CAKey    bool            `json:"ca_key"`  // the CA's key is in it, in clear inside the encryption
	Journal  bool            `json:"journal"` // so are the messages that waited
}

// Summary says what a backup holds.
type Summary struct {
	Mailboxes int   `json:"mailboxes"` // deleted ones that are kept for their mail among them
	Own       int   `json:"own"`       // messages that the node had taken itself
	Copies    int   `json:"copies"`    // of messages that the other site had taken
	Octets    int64 `json:"octets"`    // of all messages, sealed
	// Orphans are messages that are sealed to keys that the configuration does not have:
	// nobody can open them.
	Orphans int `json:"orphans"`
}

// Messages is the number of all messages.
func (s Summary) Messages() int { return s.Own + s.Copies }

// count adds a message.
func (s *Summary) count(state *raftstore.State, m journal.Meta, copied bool) {
	if copied {
		s.Copies++
	} else {
		s.Own++
	}
	s.Octets += m.Sealed
	if !HasKey(state, m) {
		s.Orphans++
	}
}

// HasKey says whether a configuration has the key that a message is sealed to.
func HasKey(s *raftstore.State, m journal.Meta) bool {
	for _, k := range s.Mailboxes[m.Mailbox].Keys {
		if k.ID == m.Key {
			return true
		}
	}
	return false
}

// Bounds on what is read, in octets. What is written keeps within them.
const (
	maxHead   = 64 << 10
	maxConfig = 1 << 30
	maxKey    = 64 << 10
	maxMeta   = 1 << 10
	maxSealed = 4 << 30
)

// Names of the members, in their order.
const (
	headName   = "backup.json"
	configName = "config.json"
	keyName    = "ca.key"
	ownDir     = "own/"
	copyDir    = "copy/"
	metaSuffix = ".meta"
	bodySuffix = ".age"
	listName   = "SHA256SUMS"
)

// member is one that was written or read, as it will stand in the list.
type member struct {
	kind kind
	id   journal.ID // of a message
	sum  [32]byte
}

type kind byte

const (
	headKind kind = iota
	configKind
	keyKind
	ownMeta
	ownBody
	copyMeta
	copyBody
)

// messageKinds are those of the two members of a message.
func messageKinds(copied bool) (meta, body kind) {
	if copied {
		return copyMeta, copyBody
	}
	return ownMeta, ownBody
}

func (m member) name() string {
	switch m.kind {
	case headKind:
		return headName
	case configKind:
		return configName
	case keyKind:
		return keyName
	case ownMeta:
		return ownDir + m.id.String() + metaSuffix
	case ownBody:
		return ownDir + m.id.String() + bodySuffix
	case copyMeta:
		return copyDir + m.id.String() + metaSuffix
	}
	return copyDir + m.id.String() + bodySuffix
}

// line is how a member stands in the list: as sha256sum writes it.
func (m member) line() string { return hex.EncodeToString(m.sum[:]) + "  " + m.name() + "\n" }

// parseMetaName reads the name of a message's first member.
func parseMetaName(name string) (id journal.ID, copied bool, err error) {
	rest, own := strings.CutPrefix(name, ownDir)
	if !own {
		rest, copied = strings.CutPrefix(name, copyDir)
	}
	rest, meta := strings.CutSuffix(rest, metaSuffix)
	if !(own || copied) || !meta {
		return id, false, fmt.Errorf("%w: %.100q is not expected in it", ErrBroken, name)
	}
	if id, err = journal.ParseID(rest); err != nil || id.String() != rest {
		return id, false, fmt.Errorf("%w: %.100q names no message", ErrBroken, name)
	}
	return id, copied, nil
}
