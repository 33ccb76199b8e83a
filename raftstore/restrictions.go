package raftstore

import (
	"cmp"
	"reflect"
	"strings"
)

// Any is an entry of Allow or Clients that lifts what the appliance's own say.
const Any = "any"

// Restrictions say from whom mail is taken for a mailbox, and how much in one message.
// A zero field of a mailbox's means that of the appliance; a zero field of the
// appliance's restricts nothing.
type Restrictions struct {
	Allow         []string `json:"allow,omitempty"`          // addresses, networks and names of presets; or Any
	RequireTLS    string   `json:"require_tls,omitempty"`    // yes or no
	Clients       []string `json:"clients,omitempty"`        // host names for which the client's certificate may be; or Any
	ClientCA      string   `json:"client_ca,omitempty"`      // PEM of CAs that issued it; or system
	MaxSize       int64    `json:"max_size,omitempty"`       // octets of a message
	MaxRecipients int      `json:"max_recipients,omitempty"` // of a message; of a mailbox's: that name the mailbox
	Dots          string   `json:"ambiguous_dots,omitempty"` // accept or reject
}

// Values of the fields of Restrictions.
const (
	Yes        = "yes"
	No         = "no"
	SystemCAs  = "system"
	DotsAccept = "accept"
	DotsReject = "reject"
)

// Bounds of Restrictions.
const (
	maxAllow          = 256      // entries
	maxClientCA       = 64 << 10 // octets
	minMessage        = 64 << 10 // octets (RFC 5321 section 4.5.3.1.7)
	maxMessage        = 1 << 30  // octets
	maxRecipients     = 1000
	maxRestrictedName = 255
)

// Over returns r with its zero fields taken from the appliance's.
func (r Restrictions) Over(of Restrictions) Restrictions {
	if r.Allow == nil {
		r.Allow = of.Allow
	}
	if r.Clients == nil {
		r.Clients = of.Clients
	}
	r.RequireTLS, r.ClientCA, r.Dots = cmp.Or(r.RequireTLS, of.RequireTLS), cmp.Or(r.ClientCA, of.ClientCA), cmp.Or(r.Dots, of.Dots)
	r.MaxSize = cmp.Or(r.MaxSize, of.MaxSize)
	return r // MaxRecipients counts something else
}

func (r Restrictions) check() error {
	for name, list := range map[string][]string{"allow": r.Allow, "client-name": r.Clients} {
		if len(list) > maxAllow {
			return rejectf("invalid", "%s: %d entries, expected at most %d", name, len(list), maxAllow)
		}
		for _, s := range list {
			if s == "" || len(s) > maxRestrictedName || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }) {
				return rejectf("invalid", "%s: %.40q, expected printable text without spaces", name, s)
			}
			if s == Any && len(list) > 1 {
				return rejectf("invalid", "%s: any stands alone", name)
			}
		}
	}
	switch {
	case r.RequireTLS != "" && r.RequireTLS != Yes && r.RequireTLS != No:
		return rejectf("invalid", "require-tls %q: expected yes or no", r.RequireTLS)
	case r.Dots != "" && r.Dots != DotsAccept && r.Dots != DotsReject:
		return rejectf("invalid", "ambiguous-dots %q: expected accept or reject", r.Dots)
	case len(r.ClientCA) > maxClientCA:
		return rejectf("invalid", "client-ca: %d octets, expected at most %d", len(r.ClientCA), maxClientCA)
	case r.MaxSize != 0 && (r.MaxSize < minMessage || r.MaxSize > maxMessage):
		return rejectf("invalid", "max-size %d: expected %d to %d octets", r.MaxSize, minMessage, maxMessage)
	case r.MaxRecipients < 0 || r.MaxRecipients > maxRecipients:
		return rejectf("invalid", "max-recipients %d: expected 1 to %d", r.MaxRecipients, maxRecipients)
	}
	return nil
}

// SetRestrictions changes the restrictions and the description of a mailbox, or, without
// an id, the restrictions of the appliance.
type SetRestrictions struct {
	ID          string       `json:"id,omitempty"`
	From        Restrictions `json:"from,omitzero"` // that the change was made from
	To          Restrictions `json:"to,omitzero"`
	Description *string      `json:"description,omitempty"` // nil: as it is
}

func (SetRestrictions) op() string { return "restrictions" }
func (ch SetRestrictions) apply(s *State, _ Command) error {
	if err := ch.To.check(); err != nil {
		return err
	}
	m, ok := s.Mailboxes[ch.ID]
	now := &m.Restrictions
	if ch.ID == "" {
		now = &s.Restrictions
	} else if !ok || m.Status == Retired {
		return rejectf("missing", "no mailbox %s", ch.ID)
	}
	if !reflect.DeepEqual(*now, ch.From) {
		return rejectf("conflict", "the restrictions were changed at the same time; try again")
	}
	*now = ch.To
	if ch.ID == "" {
		return nil
	}
	if ch.Description != nil {
		m.Description = *ch.Description
	}
	s.Mailboxes[ch.ID] = m
	return nil
}
