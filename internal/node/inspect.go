package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"msgw/internal/admin"
	"msgw/internal/journal"
	"msgw/internal/seal"
	"msgw/internal/shadow"
	"msgw/raftstore"
)

// journals is the admin.Journals of a site: of the running node, or of one that does
// not run.
type journals struct {
	own, held  *journal.Journal
	state      func() *raftstore.State
	deriver    *seal.Deriver
	single     func() (ids []journal.ID, complete bool) // nil: not known
	alone      func() bool                              // there is no other site
	quarantine *quarantine
}

func (n *Node) journals() (*journals, error) {
	if n.witness {
		return nil, admin.Errorf(http.StatusConflict, "ask a site", "a witness holds no messages")
	}
	alone := func() bool { return n.shipper.Report().State == shadow.Alone }
	return &journals{n.journal, n.held, n.store.State, n.deriver, n.shipper.Single, alone, n.quarantine}, nil
}

// OpenJournals opens the journals of a site that does not run. Close it.
func OpenJournals(dir string) (admin.Journals, func() error, error) {
	j, closeAll, err := openJournals(dir)
	if err != nil {
		return nil, nil, err
	}
	return j, closeAll, nil
}

func openJournals(dir string) (*journals, func() error, error) {
	id, err := loadIdentity(dir)
	if err != nil {
		return nil, nil, err
	}
	lock, err := lockState(dir)
	if err != nil {
		return nil, nil, err
	}
	n := &Node{cfg: &Config{State: dir}, id: id, log: slog.New(slog.DiscardHandler), witness: id.Role == raftstore.Witness}
	s, err := raftstore.LoadState(dir)
	if err == nil && n.witness {
		_, err = n.journals()
	}
	j := &journals{state: func() *raftstore.State { return s }, deriver: seal.NewDeriver(256 << 10)}
	if err == nil {
		j.quarantine, err = openQuarantine(dir, n.log)
	}
	var open []*journal.Journal
	closeAll := func() error {
		errs := []error{}
		for _, j := range open {
			errs = append(errs, j.Close())
		}
		return errors.Join(append(errs, lock.Close())...)
	}
	for name, to := range map[string]**journal.Journal{journalDir: &j.own, shadowDir: &j.held} {
		if err == nil {
			if *to, err = n.openJournal(name, journal.Options{CompactRate: -1, ScrubRate: -1}); err == nil {
				open = append(open, *to)
			}
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	return j, closeAll, nil
}

// each calls f for both journals, this site's first.
func (j *journals) each(f func(from *journal.Journal, copies bool) error) error {
	if err := f(j.own, false); err != nil {
		return err
	}
	return f(j.held, true)
}

func (j *journals) describe(m journal.Meta, copy bool) admin.Message {
	q, _ := j.quarantine.holds(m.ID)
	return admin.Message{ID: m.ID.String(), Mailbox: m.Mailbox, Key: m.Key, Received: m.Received, Octets: m.Octets, Sealed: m.Sealed,
		SHA256: fmt.Sprintf("%x", m.SHA256), Report: m.Flags&journal.JournalReport != 0, Copy: copy,
		Quarantined: q.Since, QuarantinedWhy: q.Why}
}

// Messages tells what the journals hold.
func (j *journals) Messages(ctx context.Context, q admin.Query, f func(admin.Message) error) error {
	if q.Mailbox != "" {
		id, _, _ := strings.Cut(strings.ToLower(q.Mailbox), "@")
		if err := j.knows(id); err != nil {
			return err
		}
		q.Mailbox = id
	}
	singles := map[journal.ID]bool{}
	everySingle := q.Single && j.alone != nil && j.alone()
	if q.Single {
		if j.single == nil {
			return admin.Errorf(http.StatusConflict, "start it with `msgw serve`", "the node does not run, so nobody knows what the other site holds")
		}
		ids, _ := j.single() // whether that is all is Copies.Compared of the status
		for _, id := range ids {
			singles[id] = true
		}
	}
	return j.each(func(from *journal.Journal, copies bool) (err error) {
		if copies && q.Single {
			return nil
		}
		damaged := map[journal.ID]string{}
		for _, d := range from.Damaged() {
			damaged[d.ID] = d.Err.Error()
		}
		from.All(func(m journal.Meta) bool {
			if q.Mailbox != "" && m.Mailbox != q.Mailbox || q.Single && !everySingle && !singles[m.ID] {
				return true
			}
			out := j.describe(m, copies)
			out.Damage = damaged[m.ID]
			if err = ctx.Err(); err == nil {
				err = f(out)
			}
			return err == nil
		})
		return err
	})
}

// knows returns an error if there is no such mailbox, nor anything held for one.
func (j *journals) knows(mailbox string) error {
	if _, ok := j.state().Mailboxes[mailbox]; ok || len(j.own.List(mailbox)) > 0 || len(j.held.List(mailbox)) > 0 {
		return nil
	}
	return admin.Errorf(http.StatusNotFound, "`msgw mailbox list` shows them", "no mailbox %s", mailbox)
}

// find looks a message up in both journals.
func (j *journals) find(id string) (m journal.Meta, from *journal.Journal, copies bool, err error) {
	parsed, err := journal.ParseID(strings.ToLower(id))
	if err != nil {
		return m, nil, false, admin.Errorf(http.StatusBadRequest, "", "%v", err)
	}
	err = j.each(func(in *journal.Journal, c bool) error {
		if found, ok := in.Has(parsed); ok && from == nil {
			m, from, copies = found, in, c
		}
		return nil
	})
	if err == nil && from == nil {
		err = admin.Errorf(http.StatusNotFound, "`msgw journal list` shows what there is; what the archive fetched is gone", "no message %s is held here", id)
	}
	return m, from, copies, err
}

// Message describes one message.
func (j *journals) Message(_ context.Context, id string) (admin.Message, error) {
	m, from, copies, err := j.find(id)
	if err != nil {
		return admin.Message{}, err
	}
	out := j.describe(m, copies)
	for _, d := range from.Damaged() {
		if d.ID == m.ID {
			out.Damage = d.Err.Error()
		}
	}
	if !copies && j.single != nil {
		ids, complete := j.single()
		out.Single = j.alone() || slices.Contains(ids, m.ID)
		out.SingleKnown = complete || out.Single
	}
	return out, nil
}

// Sealed opens a message as it lies on the disk: an age file.
func (j *journals) Sealed(_ context.Context, id string) (io.ReadCloser, error) {
	m, from, _, err := j.find(id)
	if err != nil {
		return nil, err
	}
	r, err := from.Open(m.ID)
	if err != nil {
		return nil, err
	}
	return readCloser{io.NewSectionReader(r, 0, m.Sealed), r}, nil
}

// Plain opens a message with its mailbox's password, as the archive would get it.
func (j *journals) Plain(ctx context.Context, id, password string) (io.ReadCloser, error) {
	m, from, _, err := j.find(id)
	if err != nil {
		return nil, err
	}
	box, ok := j.state().Mailboxes[m.Mailbox]
	if !ok {
		return nil, admin.Errorf(http.StatusNotFound, "", "mailbox %s is not known here, so its key is not either", m.Mailbox)
	}
	ids, err := seal.Unlock(ctx, j.deriver, m.Mailbox, password, box.Keys)
	if errors.Is(err, seal.ErrPassword) {
		return nil, admin.Errorf(http.StatusForbidden, "", "the password of mailbox %s is another", m.Mailbox)
	}
	if err != nil {
		return nil, err
	}
	if !seal.Unlockable(box.Keys, m.Key) {
		return nil, admin.Errorf(http.StatusConflict, "", "message %s is sealed to a key that an older password opened", m.ID)
	}
	return openPlain(from, m, ids)
}

// Verify checks every message and tells which are damaged, without a key.
func (j *journals) Verify(ctx context.Context, f func(admin.Message) error) (admin.Verified, error) {
	var sum admin.Verified
	start := time.Now()
	err := j.each(func(from *journal.Journal, copies bool) error {
		var told error
		err := from.Verify(ctx, func(m journal.Meta, damage error) {
			sum.Messages++
			sum.Octets += m.Sealed
			if damage != nil && told == nil {
				out := j.describe(m, copies)
				out.Damage = damage.Error()
				told = f(out)
			}
			if damage != nil {
				sum.Damaged++
			}
		})
		// What does not parse belongs to no message that is known.
		for _, d := range from.Damaged() {
			if d.ID != (journal.ID{}) {
				continue
			}
			sum.Damaged++
			if told == nil {
				told = f(admin.Message{Copy: copies, Damage: fmt.Sprintf("%s at octet %d: %v", filepath.Base(filepath.Dir(d.File))+"/"+filepath.Base(d.File), d.Offset, d.Err)})
			}
		}
		return errors.Join(err, told)
	})
	sum.Took = time.Since(start)
	return sum, err
}

type readCloser struct {
	io.Reader
	io.Closer
}

// openPlain unseals a message and passes over the trace block before it.
func openPlain(from *journal.Journal, m journal.Meta, ids []seal.Identity) (io.ReadCloser, error) {
	r, err := from.Open(m.ID)
	if err != nil {
		return nil, err
	}
	p, err := unseal(r, m, ids)
	if err != nil {
		r.Close()
		return nil, err
	}
	return readCloser{p, r}, nil
}

// The running node's journals, for an operator.

func (n operator) Messages(ctx context.Context, q admin.Query, f func(admin.Message) error) error {
	j, err := n.journals()
	if err != nil {
		return err
	}
	return j.Messages(ctx, q, f)
}

func (n operator) Message(ctx context.Context, id string) (admin.Message, error) {
	j, err := n.journals()
	if err != nil {
		return admin.Message{}, err
	}
	return j.Message(ctx, id)
}

func (n operator) Sealed(ctx context.Context, id string) (io.ReadCloser, error) {
	j, err := n.journals()
	if err != nil {
		return nil, err
	}
	return j.Sealed(ctx, id)
}

func (n operator) Plain(ctx context.Context, id, password string) (io.ReadCloser, error) {
	j, err := n.journals()
	if err != nil {
		return nil, err
	}
	return j.Plain(ctx, id, password)
}

func (n operator) Verify(ctx context.Context, f func(admin.Message) error) (admin.Verified, error) {
	j, err := n.journals()
	if err != nil {
		return admin.Verified{}, err
	}
	return j.Verify(ctx, f)
}
