package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"msgw/internal/journal"
	"msgw/internal/pop3d"
	"msgw/internal/seal"
	"msgw/internal/shadow"
	"msgw/raftstore"
	"msgw/smtpnode"
)

// mailboxes is the smtpnode.Mailboxes of this node.
type mailboxes struct{ *Node }

// Mailbox finds the mailbox of an address of the zone. A sub-address, from the
// first + on, does not count.
func (n mailboxes) Mailbox(address string) (smtpnode.Mailbox, error) {
	s := n.store.State()
	local, domain := address, ""
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		local, domain = address[:i], address[i+1:]
	}
	if !strings.EqualFold(strings.TrimSuffix(domain, "."), s.Zone.Name) {
		return smtpnode.Mailbox{}, fmt.Errorf("%w: %s is not the zone of this appliance", smtpnode.ErrUnknown, domain)
	}
	id, _, _ := strings.Cut(strings.ToLower(local), "+")
	m, ok := s.Mailboxes[id]
	if !ok || m.Status == raftstore.Retired {
		// It may have been made a second ago at the other site.
		if !n.store.Current() {
			return smtpnode.Mailbox{}, smtpnode.ErrUncertain
		}
		return smtpnode.Mailbox{}, smtpnode.ErrUnknown
	}
	k, ok := m.ActiveKey()
	if !ok {
		return smtpnode.Mailbox{}, fmt.Errorf("mailbox %s has no active key", id)
	}
	r, err := restrictions(m.Restrictions.Over(s.Restrictions))
	if err != nil {
		return smtpnode.Mailbox{}, fmt.Errorf("mailbox %s: %w", id, err)
	}
	return smtpnode.Mailbox{ID: id, Suspended: m.Status == raftstore.Suspended, Strict: s.Strict(m), Key: k.ID, Recipient: k.Recipient, Restrictions: r}, nil
}

// AllStrict returns whether every mailbox wants two copies always.
func (n mailboxes) AllStrict() bool { return n.store.State().AllStrict() }

// Strict returns whether a mailbox wants two copies always.
func (n mailboxes) Strict(id string) bool {
	s := n.store.State()
	m, ok := s.Mailboxes[id]
	return ok && s.Strict(m)
}

// Seals returns whether a key is the active one of a mailbox.
func (n mailboxes) Seals(id, key string) bool {
	k, ok := n.store.State().Mailboxes[id].ActiveKey()
	return ok && k.ID == key
}

// maildrops is the pop3d.Maildrops of this node.
type maildrops struct {
	n *Node

	mu   sync.Mutex
	open map[string]bool
}

func newMaildrops(n *Node) *maildrops { return &maildrops{n: n, open: map[string]bool{}} }

// Login checks the password by opening the mailbox's key with it.
func (d *maildrops) Login(ctx context.Context, user, password string) (pop3d.Maildrop, error) {
	s := d.n.store.State()
	id := strings.ToLower(user)
	if local, domain, ok := strings.Cut(id, "@"); ok && domain == s.Zone.Name {
		id = local
	}
	m, ok := s.Mailboxes[id]
	if !ok {
		d.n.deriver.Decoy(ctx, password)
		return nil, pop3d.ErrCredentials
	}
	ids, err := seal.Unlock(ctx, d.n.deriver, id, password, m.Keys)
	if errors.Is(err, seal.ErrPassword) {
		return nil, pop3d.ErrCredentials
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", pop3d.ErrTemporary, err)
	}
	d.mu.Lock()
	inUse := d.open[id]
	d.open[id] = true
	d.mu.Unlock() // listing may take a while, and others log in meanwhile
	if inUse {
		return nil, pop3d.ErrInUse
	}
	if !d.n.shipper.Listable() {
		d.n.log.Info("own messages are not listed yet: the other site may have handed some of them over", "mailbox", id)
	}
	return d.list(id, m.Keys, ids), nil
}

// list lists the messages of a mailbox that ids open. What an older password locked
// away, or cannot be read, stays waiting, unlisted.
func (d *maildrops) list(mailbox string, keys []seal.Key, ids []seal.Identity) *maildrop {
	mail := slices.DeleteFunc(d.n.site().List(mailbox), func(m shadow.Mail) bool {
		_, quarantined := d.n.quarantine.holds(m.ID)
		return quarantined || !seal.Unlockable(keys, m.Key)
	})
	return &maildrop{drops: d, mailbox: mailbox, ids: ids, mail: mail, failed: map[int]bool{}}
}

func (n *Node) site() shadow.Site { return shadow.Site{Shipper: n.shipper, Holder: n.holder} }

// maildrop is one mailbox while an archive has it open.
type maildrop struct {
	drops   *maildrops
	mailbox string
	ids     []seal.Identity
	mail    []shadow.Mail

	mu     sync.Mutex
	failed map[int]bool // messages that could not be read, by index in mail
}

func (d *maildrop) Messages() []pop3d.Message {
	ms := make([]pop3d.Message, len(d.mail))
	for i, m := range d.mail {
		lfDot := m.Flags&journal.LFDot != 0
		ms[i] = pop3d.Message{ID: m.ID.String(), LFDot: lfDot,
			Octets: traceFields(m.Meta) + pop3d.Octets(m.Octets, m.BareLFs, m.Flags&journal.NoFinalCRLF == 0, lfDot)}
	}
	return ms
}

// traceFields returns how many octets of header fields stand before a message at its
// hand-over: those of its trace block, or none before a journal report, which is evidence
// and carries its envelope within.
func traceFields(m journal.Meta) int64 {
	if m.Flags&journal.JournalReport != 0 {
		return 0
	}
	return max(0, m.Trace-int64(journal.TraceBindingLen(m.Mailbox)+len("\r\n")))
}

// Open unseals a message.
func (d *maildrop) Open(ctx context.Context, i int) (io.ReadCloser, error) {
	m := d.mail[i]
	r, err := openPlain(m.From, m.Meta, d.ids)
	if err != nil {
		d.unread(ctx, i, err)
		return nil, err
	}
	return watched{r, func(err error) { d.unread(ctx, i, err) }}, nil
}

// unread notes that a message could not be read, once a session: the copy of the other
// site gets its time to mend it, once the journal knows of the damage.
func (d *maildrop) unread(ctx context.Context, i int, err error) {
	m := d.mail[i]
	d.drops.n.log.Error("waiting message cannot be read", "id", m.ID.String(), "mailbox", d.mailbox, "err", err)
	if d.hasFailed(i, false) || ctx.Err() != nil {
		return
	}
	if damage := m.From.Check(ctx, m.ID); errors.Is(damage, journal.ErrDamaged) {
		err = damage
	}
	if unreadable(err) && !d.hasFailed(i, true) {
		d.drops.n.quarantine.failed(m.Meta, err)
	}
}

// hasFailed returns whether a message could not be read before in this session, and notes
// that it could not be now. One message is read while the next is opened.
func (d *maildrop) hasFailed(i int, now bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.failed[i]
	if now {
		d.failed[i] = true
	}
	return before
}

// unseal opens the message behind m, checks that its octets belong to m, and returns it as
// it is handed over: with the fields of its trace block before it, or without.
func unseal(r *journal.Reader, m journal.Meta, ids []seal.Identity) (io.Reader, error) {
	p, size, err := seal.Open(r, m.Sealed, ids)
	if err != nil {
		return nil, err
	}
	if size != m.Trace+m.Octets {
		return nil, fmt.Errorf("%w: %d octets, expected %d", errOtherRecord, size, m.Trace+m.Octets)
	}
	trace := make([]byte, m.Trace)
	if _, err := p.ReadAt(trace, 0); err != nil && err != io.EOF {
		return nil, err
	}
	fields, ok := bytes.CutPrefix(trace, []byte(journal.TraceBinding(m.ID, m.Mailbox)))
	n := traceFields(m)
	if !ok || n > int64(len(fields)) {
		return nil, errOtherRecord
	}
	return io.MultiReader(bytes.NewReader(fields[:n]), io.NewSectionReader(p, m.Trace, m.Octets)), nil
}

var errOtherRecord = fmt.Errorf("%w: its octets belong to another record", journal.ErrDamaged)

func (d *maildrop) Delete(_ context.Context, which []int) error {
	mail := make([]shadow.Mail, len(which))
	for i, w := range which {
		mail[i] = d.mail[w]
	}
	return d.drops.n.site().Delete(mail...)
}

func (d *maildrop) Close() {
	d.drops.mu.Lock()
	defer d.drops.mu.Unlock()
	delete(d.drops.open, d.mailbox)
}
