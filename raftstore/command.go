package raftstore

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"msgw/internal/seal"
)

// Command is one change. It is applied at every node from these octets alone.
type Command struct {
	Request string          `json:"request"` // random; a command is applied once per request
	At      time.Time       `json:"at"`      // the proposer's clock
	By      string          `json:"by"`      // name of the node it was given to
	Op      string          `json:"op"`
	Args    json.RawMessage `json:"args"`
}

// Change is what a command does.
type Change interface {
	op() string
	// apply changes s, a copy that nobody else sees, or returns a *Rejection.
	apply(s *State, c Command) error
}

// Outcome of a command that was committed.
type Outcome struct {
	Request   string     `json:"request"`
	Index     uint64     `json:"index"`
	Rejection *Rejection `json:"rejection,omitempty"`
}

// Rejection says why a committed command changed nothing.
type Rejection struct {
	Code    string `json:"code"` // exists, missing, conflict or invalid
	Message string `json:"message"`
}

func (r *Rejection) Error() string { return r.Message }

func rejectf(code, format string, args ...any) error {
	return &Rejection{code, fmt.Sprintf(format, args...)}
}

// keepOutcomes bounds State.Recent: a retry later than that many commands would be
// applied again. Retries end within a minute.
const keepOutcomes = 512

// changes makes an empty change for each op.
var changes = map[string]func() Change{
	"init":            func() Change { return &initState{} },
	"invite":          func() Change { return &AddInvite{} },
	"node.join":       func() Change { return &JoinNode{} },
	"node.update":     func() Change { return &UpdateNode{} },
	"node.rejoin":     func() Change { return &RejoinNode{} },
	"node.leave":      func() Change { return &LeaveNode{} },
	"node.remove":     func() Change { return &RemoveNode{} },
	"epoch":           func() Change { return &StartEpoch{} },
	"node.weight":     func() Change { return &SetWeight{} },
	"mailbox.create":  func() Change { return &CreateMailbox{} },
	"mailbox.keys":    func() Change { return &SetKeys{} },
	"mailbox.status":  func() Change { return &SetStatus{} },
	"mailbox.purge":   func() Change { return &PurgeMailbox{} },
	"mailbox.policy":  func() Change { return &SetPolicy{} },
	"acme":            func() Change { return &SetACME{} },
	"copies":          func() Change { return &SetCopies{} },
	"restrictions":    func() Change { return &SetRestrictions{} },
	"signing.step":    func() Change { return &SignStep{} },
	"signing.reached": func() Change { return &SignReached{} },
	"signing.parent":  func() Change { return &SignParent{} },
	"zone.content":    func() Change { return &SetContent{} },
}

// newCommand wraps a change for the log.
func newCommand(by string, ch Change, now time.Time) Command {
	args, err := json.Marshal(ch)
	if err != nil {
		panic(err) // plain data always encodes
	}
	return Command{Request: randomHex(16), At: now.UTC(), By: by, Op: ch.op(), Args: args}
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// errNotUnderstood says that a command was written by another version of msgw.
var errNotUnderstood = errors.New("written by another version of msgw")

// understand decodes a command, all of it: a node that left out the part it does
// not know would come to a configuration of its own.
func understand(raw []byte) (Command, Change, error) {
	var c Command
	if err := decodeStrictly(raw, &c); err != nil {
		return c, nil, fmt.Errorf("%w: %w", errNotUnderstood, err)
	}
	make, ok := changes[c.Op]
	if !ok {
		return c, nil, fmt.Errorf("%w: command %q is not known here", errNotUnderstood, c.Op)
	}
	ch := make()
	if err := decodeStrictly(c.Args, ch); err != nil {
		return c, nil, fmt.Errorf("%w: command %q: %w", errNotUnderstood, c.Op, err)
	}
	return c, ch, nil
}

func decodeStrictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more follows than one value")
	}
	return nil
}

// apply returns the state after a command and its outcome, or errNotUnderstood. It
// depends on nothing but its arguments, so every node comes to the same state.
func (s *State) apply(raw []byte, index, term uint64) (*State, Outcome, error) {
	c, ch, err := understand(raw)
	if err != nil {
		return nil, Outcome{}, err
	}
	next := s.clone()
	out := next.outcome(c, ch, index)
	next.Index, next.Term, next.Hash = index, term, link(s.Hash, raw, out)
	return next, out, nil
}

// outcome changes s as the command says, or not at all.
func (s *State) outcome(c Command, ch Change, index uint64) Outcome {
	if i := slices.IndexFunc(s.Recent, func(o Outcome) bool { return o.Request == c.Request }); i >= 0 {
		return s.Recent[i]
	}
	out := Outcome{Request: c.Request, Index: index}
	changed := s.clone()
	if err := changed.change(c, ch); err == nil {
		*s = *changed
		s.Revision++
	} else if r, ok := err.(*Rejection); ok {
		out.Rejection = r
	} else {
		out.Rejection = &Rejection{"invalid", err.Error()}
	}
	if s.Recent = append(s.Recent, out); len(s.Recent) > keepOutcomes {
		s.Recent = slices.Clone(s.Recent[len(s.Recent)-keepOutcomes:])
	}
	return out
}

func (s *State) change(c Command, ch Change) error {
	if (s.Cluster == "") != (c.Op == "init") {
		return rejectf("invalid", "command %q does not fit a cluster in this state", c.Op)
	}
	return ch.apply(s, c)
}

// initState is the first command of a cluster.
type initState struct {
	State *State `json:"state"`
}

func (initState) op() string { return "init" }
func (ch initState) apply(s *State, _ Command) error {
	if ch.State == nil {
		return rejectf("invalid", "no configuration to begin with")
	}
	*s = *ch.State.clone() // its place in the log is set by apply
	return nil
}

// AddInvite records an invitation.
type AddInvite struct {
	Invite Invite `json:"invite"`
}

func (AddInvite) op() string { return "invite" }
func (ch AddInvite) apply(s *State, c Command) error {
	for id, i := range s.Invites {
		if i.Expires.Before(c.At) {
			delete(s.Invites, id)
		}
	}
	if len(s.Invites) >= 16 {
		return rejectf("conflict", "16 invitations are open; wait until one expires")
	}
	if name := ch.Invite.Replaces; name != "" {
		switch n, ok := s.Nodes[name]; {
		case !ok:
			return rejectf("missing", "no node is named %s", name)
		case n.Role != ch.Invite.Role:
			return rejectf("invalid", "%s is a %s: a %s cannot take its place", name, n.Role, ch.Invite.Role)
		case n.ID != ch.Invite.ReplacesID:
			return rejectf("conflict", "%s was changed at the same time; try again", name)
		}
	}
	s.Invites[ch.Invite.ID] = ch.Invite
	return nil
}

var mailboxID = regexp.MustCompile(`^mbx-[0-9a-f]{32}$`)

// CheckMailboxID says whether id has the form of a mailbox id.
func CheckMailboxID(id string) error {
	if !mailboxID.MatchString(id) {
		return fmt.Errorf("mailbox id %q: expected mbx- and 32 hex digits, as in mbx-2a20342e96294505a35eb5c8364eb67c", id)
	}
	return nil
}

// NewMailboxID returns a random id.
func NewMailboxID() string { return "mbx-" + randomHex(16) }

// CreateMailbox adds a mailbox.
type CreateMailbox struct {
	ID          string   `json:"id"`
	Description string   `json:"description,omitempty"`
	Key         seal.Key `json:"key"`
}

func (CreateMailbox) op() string { return "mailbox.create" }
func (ch CreateMailbox) apply(s *State, c Command) error {
	if err := CheckMailboxID(ch.ID); err != nil {
		return rejectf("invalid", "%v", err)
	}
	if m, ok := s.Mailboxes[ch.ID]; ok {
		return rejectf("exists", "mailbox %s exists already and is %s", ch.ID, m.Status)
	}
	s.Mailboxes[ch.ID] = Mailbox{ID: ch.ID, Description: ch.Description, Status: Active,
		Keys: []seal.Key{ch.Key}, Version: 1, Created: c.At}
	return nil
}

// SetKeys replaces a mailbox's keys, if they are still those that were read.
type SetKeys struct {
	ID      string     `json:"id"`
	Version uint64     `json:"version"` // that the change was made from
	Keys    []seal.Key `json:"keys"`
}

func (SetKeys) op() string { return "mailbox.keys" }
func (ch SetKeys) apply(s *State, _ Command) error {
	m, ok := s.Mailboxes[ch.ID]
	switch {
	case !ok:
		return rejectf("missing", "no mailbox %s", ch.ID)
	case m.Version != ch.Version:
		return rejectf("conflict", "mailbox %s was changed at the same time; try again", ch.ID)
	}
	for _, k := range m.Keys {
		if !slices.ContainsFunc(ch.Keys, func(n seal.Key) bool { return n.ID == k.ID && n.Recipient == k.Recipient }) {
			return rejectf("invalid", "a change of mailbox %s would drop its key %s", ch.ID, k.ID)
		}
	}
	active := 0
	for _, k := range ch.Keys {
		if k.State == seal.Active {
			active++
		}
	}
	if active != 1 {
		return rejectf("invalid", "a change of mailbox %s would leave it %d active keys, expected one", ch.ID, active)
	}
	m.Keys, m.Version = ch.Keys, m.Version+1
	s.Mailboxes[ch.ID] = m
	return nil
}

// SetStatus suspends, activates or retires a mailbox.
type SetStatus struct {
	ID     string        `json:"id"`
	Status MailboxStatus `json:"status"`
}

func (SetStatus) op() string { return "mailbox.status" }
func (ch SetStatus) apply(s *State, c Command) error {
	m, ok := s.Mailboxes[ch.ID]
	switch {
	case !ok:
		return rejectf("missing", "no mailbox %s", ch.ID)
	case m.Status == Retired:
		return rejectf("conflict", "mailbox %s is deleted", ch.ID)
	case ch.Status == Retired && m.Status != Suspended:
		return rejectf("conflict", "mailbox %s is %s: suspend it before you delete it", ch.ID, m.Status)
	case ch.Status != Active && ch.Status != Suspended && ch.Status != Retired:
		return rejectf("invalid", "status %q: expected active, suspended or retired", ch.Status)
	}
	m.Status = ch.Status
	if ch.Status == Retired {
		m.RetiredAt = c.At
	}
	s.Mailboxes[ch.ID] = m
	return nil
}

// PurgeMailbox forgets a retired mailbox and its keys. The proposer has seen that
// every site accepts nothing and holds nothing for it.
type PurgeMailbox struct {
	ID string `json:"id"`
}

func (PurgeMailbox) op() string { return "mailbox.purge" }
func (ch PurgeMailbox) apply(s *State, _ Command) error {
	if m, ok := s.Mailboxes[ch.ID]; !ok || m.Status != Retired {
		return rejectf("conflict", "mailbox %s is not retired", ch.ID)
	}
	delete(s.Mailboxes, ch.ID)
	return nil
}

// SetACME changes where certificates come from.
type SetACME struct {
	ACME ACME `json:"acme"`
}

func (SetACME) op() string { return "acme" }
func (ch SetACME) apply(s *State, _ Command) error {
	if d := ch.ACME.Directory; d != "" && !strings.HasPrefix(d, "https://") {
		return rejectf("invalid", "ACME directory %q: expected an https URL", d)
	}
	for what, v := range map[string]string{"profile": ch.ACME.Profile, "chain": ch.ACME.Chain, "e-mail address": ch.ACME.Email} {
		if len(v) > 200 || strings.ContainsFunc(v, unicode.IsControl) {
			return rejectf("invalid", "ACME %s %.80q: expected one line of at most 200 octets", what, v)
		}
	}
	s.ACME = ch.ACME
	return nil
}
