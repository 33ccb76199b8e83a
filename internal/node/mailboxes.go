package node

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"msgw/internal/admin"
	"msgw/internal/ca"
	"msgw/internal/journal"
	"msgw/internal/seal"
	"msgw/raftstore"
)

func fingerprint(m *members) string { return ca.Fingerprint(m.Root()) }

func (n *Node) address(id string) string { return id + "@" + n.store.State().Zone.Name }

// choose returns the password to use and its parameters. generated is empty if the
// operator chose one.
func choose(password string) (use, generated string, kdf seal.KDF, err error) {
	if password == "" {
		p := seal.NewPassword()
		return p, p, seal.GeneratedKDF, nil
	}
	if err := seal.CheckPassword(password); err != nil {
		return "", "", seal.KDF{}, admin.Errorf(http.StatusBadRequest, "", "%v", err)
	}
	return password, "", seal.ChosenKDF, nil
}

// CreateMailbox makes a mailbox, or takes over an existing address.
func (n operator) CreateMailbox(ctx context.Context, r admin.CreateMailbox) (admin.Credentials, error) {
	if r.ID == "" {
		r.ID = raftstore.NewMailboxID()
	}
	r.ID = strings.ToLower(r.ID)
	if err := raftstore.CheckMailboxID(r.ID); err != nil {
		return admin.Credentials{}, admin.Errorf(http.StatusBadRequest, "", "%v", err)
	}
	if err := checkDescription(r.Description); err != nil {
		return admin.Credentials{}, err
	}
	password, generated, kdf, err := choose(r.Password)
	if err != nil {
		return admin.Credentials{}, err
	}
	key, err := seal.NewKey(ctx, n.deriver, r.ID, password, kdf, time.Now())
	if err != nil {
		return admin.Credentials{}, err
	}
	c, err := n.change(ctx, raftstore.CreateMailbox{ID: r.ID, Description: r.Description, Key: key})
	if err != nil {
		return admin.Credentials{}, keepPassword(err, r.ID, generated)
	}
	n.log.Info("mailbox created", "mailbox", r.ID, "applied", c.Applied, "missing", c.Missing)
	return admin.Credentials{ID: r.ID, Address: n.address(r.ID), Password: generated, Change: c}, nil
}

func checkDescription(d string) error {
	if len(d) > 200 || strings.ContainsFunc(d, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return admin.Errorf(http.StatusBadRequest, "", "description %.40q: expected at most 200 octets of printable text", d)
	}
	return nil
}

// find looks up a mailbox by id or address.
func (n *Node) find(id string) (raftstore.Mailbox, error) {
	local, _, _ := strings.Cut(strings.ToLower(id), "@")
	m, ok := n.store.State().Mailboxes[local]
	if !ok {
		return m, admin.Errorf(http.StatusNotFound, "`msgw mailbox list` shows them", "no mailbox %s", id)
	}
	return m, nil
}

// ChangePassword wraps the keys under another password. No message is touched.
func (n operator) ChangePassword(ctx context.Context, id string, r admin.ChangePassword) (admin.Credentials, error) {
	m, err := n.find(id)
	if err != nil {
		return admin.Credentials{}, err
	}
	password, generated, kdf, err := choose(r.New)
	if err != nil {
		return admin.Credentials{}, err
	}
	keys, err := seal.Rewrap(ctx, n.deriver, m.ID, r.Old, password, kdf, m.Keys)
	if errors.Is(err, seal.ErrPassword) {
		return admin.Credentials{}, admin.Errorf(http.StatusForbidden,
			"if it is lost, `msgw mailbox passwd --reset` makes a new key; what waits under the old one becomes locked", "the old password is wrong")
	}
	if err != nil {
		return admin.Credentials{}, err
	}
	return n.setKeys(ctx, m, keys, generated)
}

// setKeys replaces the keys of a mailbox, if they are still those of m.
func (n operator) setKeys(ctx context.Context, m raftstore.Mailbox, keys []seal.Key, generated string) (admin.Credentials, error) {
	c, err := n.change(ctx, raftstore.SetKeys{ID: m.ID, Version: m.Version, Keys: keys})
	if err != nil {
		return admin.Credentials{}, keepPassword(err, m.ID, generated)
	}
	n.log.Info("mailbox keys changed", "mailbox", m.ID, "keys", len(keys), "reset", len(keys) > len(m.Keys), "applied", c.Applied, "missing", c.Missing)
	return admin.Credentials{ID: m.ID, Address: n.address(m.ID), Password: generated, Change: c}, nil
}

// ResetPassword makes a new key under a new password. What waits under the old key
// is kept, locked.
func (n operator) ResetPassword(ctx context.Context, id string, r admin.ResetPassword) (admin.Credentials, error) {
	m, err := n.find(id)
	if err != nil {
		return admin.Credentials{}, err
	}
	password, generated, kdf, err := choose(r.New)
	if err != nil {
		return admin.Credentials{}, err
	}
	key, err := seal.NewKey(ctx, n.deriver, m.ID, password, kdf, time.Now())
	if err != nil {
		return admin.Credentials{}, err
	}
	keys := slices.Clone(m.Keys)
	for i := range keys {
		keys[i].State = seal.DecryptOnly
	}
	return n.setKeys(ctx, m, append(keys, key), generated)
}

// SetMailboxStatus suspends or activates a mailbox.
func (n operator) SetMailboxStatus(ctx context.Context, id, status string) (admin.Change, error) {
	m, err := n.find(id)
	if err != nil {
		return admin.Change{}, err
	}
	st := raftstore.MailboxStatus(status)
	if st != raftstore.Active && st != raftstore.Suspended {
		return admin.Change{}, admin.Errorf(http.StatusBadRequest, "", "status %q: expected active or suspended", status)
	}
	return n.change(ctx, raftstore.SetStatus{ID: m.ID, Status: st})
}

// Mailboxes lists all mailboxes and what waits in them.
func (n operator) Mailboxes(ctx context.Context) ([]admin.Mailbox, error) {
	s := n.store.State()
	all, errs := n.askHoldings(ctx)
	out := make([]admin.Mailbox, 0, len(s.Mailboxes))
	for _, m := range s.Mailboxes {
		out = append(out, n.describe(m, all, errs))
	}
	slices.SortFunc(out, func(a, b admin.Mailbox) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Mailbox describes one.
func (n operator) Mailbox(ctx context.Context, id string) (admin.Mailbox, error) {
	m, err := n.find(id)
	if err != nil {
		return admin.Mailbox{}, err
	}
	all, errs := n.askHoldings(ctx)
	return n.describe(m, all, errs), nil
}

// askHoldings asks every site what it has.
func (n *Node) askHoldings(ctx context.Context) (map[string]holdings, map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var mu sync.Mutex
	all, errs := map[string]holdings{}, map[string]error{}
	var wg sync.WaitGroup
	for _, name := range n.store.State().Sites() {
		wg.Go(func() {
			h, err := n.holdingsAt(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			all[name], errs[name] = h, err
		})
	}
	wg.Wait()
	return all, errs
}

func (n *Node) describe(m raftstore.Mailbox, all map[string]holdings, errs map[string]error) admin.Mailbox {
	out := admin.Mailbox{ID: m.ID, Address: n.address(m.ID), Description: m.Description, Status: string(m.Status), Policy: string(m.Policy), Created: m.Created,
		Restrictions: admin.Restrictions(m.Restrictions), Effective: admin.Restrictions(m.Restrictions.Over(n.store.State().Restrictions))}
	for _, k := range m.Keys {
		out.Keys = append(out.Keys, admin.Key{ID: k.ID, State: string(k.State), Created: k.Created})
	}
	for _, name := range n.store.State().Sites() {
		h := admin.Held{Site: name}
		if err := errs[name]; err != nil {
			h.Error = err.Error()
		} else {
			own, copies := all[name].Own[m.ID], all[name].Copies[m.ID]
			h.Copies = copies.Messages
			handed := []journal.Waiting{own}
			if h.Adopted = all[name].Adopted; h.Adopted {
				handed = append(handed, copies)
			}
			for _, w := range handed {
				h.Messages, h.Octets = h.Messages+w.Messages, h.Octets+w.Octets
				if h.Oldest.IsZero() || !w.Oldest.IsZero() && w.Oldest.Before(h.Oldest) {
					h.Oldest = w.Oldest
				}
				for key, count := range w.Keys {
					if !seal.Unlockable(m.Keys, key) {
						h.Locked += count
					}
				}
			}
		}
		out.Sites = append(out.Sites, h)
	}
	return out
}
