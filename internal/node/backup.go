package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"msgw/internal/admin"
	"msgw/internal/backup"
	"msgw/internal/journal"
	"msgw/raftstore"
)

// Backup writes a backup of the running node. It holds the configuration at one moment,
// and the messages that waited then; those that are deleted meanwhile are in it whole or
// not at all.
func (n operator) Backup(ctx context.Context, r admin.BackupRequest, w io.Writer) (admin.Backup, error) {
	var j *journals
	if r.Journal {
		var err error
		if j, err = n.journals(); err != nil {
			return admin.Backup{}, err
		}
	}
	return writeBackup(ctx, n.id, n.store.State(), j, n.version, r, w, n.log)
}

// BackupStopped writes a backup of the node in dir, which does not run.
func BackupStopped(ctx context.Context, dir, version string, r admin.BackupRequest, w io.Writer) (sum admin.Backup, err error) {
	id, err := loadIdentity(dir)
	if err != nil {
		return sum, err
	}
	var j *journals
	if r.Journal {
		var closeAll func() error
		if j, closeAll, err = openJournals(dir); err != nil {
			return sum, err
		}
		defer func() { err = errors.Join(err, closeAll()) }()
	} else {
		lock, err := lockState(dir)
		if err != nil {
			return sum, err
		}
		defer lock.Close()
	}
	s, err := raftstore.LoadState(dir)
	if err != nil {
		return sum, operatorError(err, lostHint)
	}
	return writeBackup(ctx, id, s, j, version, r, w, slog.New(slog.DiscardHandler))
}

// writeBackup writes a backup of s and, unless j is nil, of the messages in j.
func writeBackup(ctx context.Context, id *identity, s *raftstore.State, j *journals, version string, r admin.BackupRequest, w io.Writer, log *slog.Logger) (admin.Backup, error) {
	sum := admin.Backup{Node: id.Name, Zone: s.Zone.Name, Revision: s.Revision, Encrypted: len(r.Recipients), Journal: j != nil}
	o := backup.Options{Node: id.Name, Version: version, Made: time.Now(), Journal: j != nil}
	var err error
	if o.Recipients, err = backup.ParseRecipients(r.Recipients); err != nil {
		return sum, admin.Errorf(http.StatusBadRequest, "", "%v", err)
	}
	// The node keys that the CA's key is sealed to are gone when the machines are gone.
	// A witness has none of them.
	if len(o.Recipients) > 0 && id.Role == raftstore.Site {
		if o.CAKey, err = id.node.OpenSecret(s.CA.Key); err != nil {
			return sum, fmt.Errorf("cluster CA: %w", err)
		}
		if s, err = withClearKeys(s, id); err != nil {
			return sum, err
		}
	}
	sum.CAKey = o.CAKey != nil
	b, err := backup.NewWriter(w, s, o)
	if err != nil {
		return sum, err
	}
	if j != nil {
		a := &archiver{ctx: ctx, to: b, state: s, made: o.Made, sum: &sum, log: log}
		if err := j.each(a.all); err != nil {
			return sum, err
		}
	}
	held, err := b.Close()
	if err != nil {
		return sum, err
	}
	sum.Mailboxes, sum.Own, sum.Copies, sum.Octets = held.Mailboxes, held.Own, held.Copies, held.Octets
	log.Info("backup made", "mailboxes", sum.Mailboxes, "journal", sum.Journal, "messages", held.Messages(), "octets", sum.Octets,
		"recipients", sum.Encrypted, "left_out", sum.Damaged)
	return sum, nil
}

// archiver takes the messages of journals into a backup.
type archiver struct {
	ctx   context.Context
	to    *backup.Writer
	state *raftstore.State
	made  time.Time
	sum   *admin.Backup
	log   *slog.Logger
}

// all takes the messages of one journal.
func (a *archiver) all(from *journal.Journal, copies bool) (err error) {
	from.All(func(m journal.Meta) bool {
		if err = a.ctx.Err(); err == nil {
			err = a.one(from, m, copies)
		}
		return err == nil
	})
	return err
}

// one takes a message, unless it was deleted meanwhile, is damaged, or came in for a
// mailbox or key that was made meanwhile and so is not in the configuration.
func (a *archiver) one(from *journal.Journal, m journal.Meta, copied bool) error {
	if a.to.Has(m.ID) || m.Received.After(a.made) && !backup.HasKey(a.state, m) {
		return nil
	}
	r, err := from.Open(m.ID)
	if err == nil {
		defer r.Close()
		m = r.Meta // it may have been another's when it was listed
		err = checkSealed(r)
	}
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return nil
	case errors.Is(err, journal.ErrDamaged):
		a.log.Warn("a damaged message is left out of the backup", "id", m.ID.String(), "mailbox", m.Mailbox, "err", err)
		if a.sum.Damaged++; len(a.sum.LeftOut) < admin.MaxLeftOut {
			a.sum.LeftOut = append(a.sum.LeftOut, m.ID.String())
		}
		return nil
	case err != nil:
		return err
	}
	return a.to.Message(m, copied, io.NewSectionReader(r, 0, m.Sealed))
}

// checkSealed reads a message once before it is written anywhere: what was begun in a
// backup cannot be taken back.
func checkSealed(r *journal.Reader) error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, r.Meta.Sealed)); err != nil {
		return err
	}
	if [32]byte(h.Sum(nil)) != r.Meta.SHA256 {
		return fmt.Errorf("%s: %w: its SHA-256 is another", r.Meta.ID, journal.ErrDamaged)
	}
	return nil
}
