package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"msgw/internal/admin"
	"msgw/internal/durable"
	"msgw/internal/journal"
)

// quarantine names the messages of this node that could not be read in several sessions of
// the archive, and that the other site's copy did not mend meanwhile. They are kept and
// not listed, so that the archive gets past them. One that can be read again is let go.
type quarantine struct {
	path string
	log  *slog.Logger

	mu       sync.Mutex
	held     map[journal.ID]quarantined
	failures map[journal.ID]failed // of messages that are not held
}

// quarantined is what the file says of a message.
type quarantined struct {
	ID      journal.ID `json:"-"`
	Name    string     `json:"id"`
	Mailbox string     `json:"mailbox"`
	Since   time.Time  `json:"since"`
	Why     string     `json:"why"`
	// Damage: it is not what was written. Else it was written as it is.
	Damage bool `json:"damage,omitempty"`
}

type failed struct {
	times int
	last  time.Time
}

// Bounds of a quarantine.
const (
	quarantineAfter = 3     // sessions in which a message could not be read
	maxQuarantined  = 10000 // messages
	// failedFor is how long a failure counts. It is above the archive's interval.
	failedFor = 24 * time.Hour
	// reviewEvery is how often it is looked whether what is held can be read again.
	reviewEvery = 10 * time.Minute
)

func openQuarantine(dir string, log *slog.Logger) (*quarantine, error) {
	q := &quarantine{path: filepath.Join(dir, quarantineFile), log: log, held: map[journal.ID]quarantined{}, failures: map[journal.ID]failed{}}
	b, err := os.ReadFile(q.path)
	if errors.Is(err, fs.ErrNotExist) {
		return q, nil
	}
	var all []quarantined
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	for _, x := range all {
		if err == nil {
			x.ID, err = journal.ParseID(x.Name)
			q.held[x.ID] = x
		}
	}
	if err != nil {
		return nil, operatorError(fmt.Errorf("%s: %w", q.path, err), "it lists messages that cannot be read; remove the file: they are then tried again")
	}
	return q, nil
}

// holds returns what is known of a message that is quarantined.
func (q *quarantine) holds(id journal.ID) (quarantined, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	x, ok := q.held[id]
	return x, ok
}

// list returns all that is held, the oldest first.
func (q *quarantine) list() []quarantined {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.SortedFunc(maps.Values(q.held), func(a, b quarantined) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// unreadable returns whether an error is the message's own, and not of a moment. What the
// system says of a disk is the message's only if the journal says so too, having read it
// anew: it is then looked at again.
func unreadable(err error) bool {
	for _, passes := range []error{context.Canceled, context.DeadlineExceeded, journal.ErrClosed, journal.ErrNotFound, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, passes) {
			return false
		}
	}
	var system syscall.Errno
	return errors.Is(err, journal.ErrDamaged) || !errors.As(err, &system)
}

// failed counts a session in which a message could not be read.
func (q *quarantine) failed(m journal.Meta, cause error) {
	if !unreadable(cause) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(q.failures, func(_ journal.ID, f failed) bool { return now.Sub(f.last) > failedFor })
	f := q.failures[m.ID]
	f.times, f.last = f.times+1, now
	if _, ok := q.held[m.ID]; ok || len(q.failures) >= maxQuarantined && f.times == 1 {
		return
	}
	q.failures[m.ID] = f
	if f.times < quarantineAfter {
		return
	}
	if len(q.held) >= maxQuarantined {
		q.log.Error("a message cannot be read, and as many are quarantined as can be", "id", m.ID.String(), "mailbox", m.Mailbox, "err", cause)
		return
	}
	x := quarantined{ID: m.ID, Name: m.ID.String(), Mailbox: m.Mailbox, Since: now.UTC(), Why: cause.Error(),
		Damage: errors.Is(cause, journal.ErrDamaged) && !errors.Is(cause, errOtherRecord)}
	if err := q.replace(m.ID, &x); err != nil {
		q.log.Error("a message that cannot be read is not quarantined", "id", x.Name, "mailbox", m.Mailbox, "err", err)
		return
	}
	delete(q.failures, m.ID)
	q.log.Error("a message is quarantined: it could not be read and is not listed any more", "id", x.Name, "mailbox", m.Mailbox, "err", cause)
}

// replace puts a message in, or takes it out if x is nil, once the file says so; q.mu is
// held.
func (q *quarantine) replace(id journal.ID, x *quarantined) error {
	next := maps.Clone(q.held)
	if delete(next, id); x != nil {
		next[id] = *x
	}
	b, err := json.Marshal(slices.Collect(maps.Values(next)))
	if err == nil {
		err = durable.ReplaceFile(q.path, b)
	}
	if err == nil {
		q.held = next
	}
	return err
}

// release lets a message go.
func (q *quarantine) release(id journal.ID, why string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	x, ok := q.held[id]
	if !ok {
		return fs.ErrNotExist
	}
	if err := q.replace(id, nil); err != nil {
		return err
	}
	q.log.Info("a message is quarantined no more", "id", x.Name, "mailbox", x.Mailbox, "why", why)
	return nil
}

// review lets go, from time to time, what can be read again and what is gone.
func (q *quarantine) review(ctx context.Context, journals ...*journal.Journal) error {
	t := time.NewTicker(reviewEvery)
	defer t.Stop()
	for {
		for _, x := range q.list() {
			why := "it is gone"
			for _, j := range journals {
				if _, ok := j.Has(x.ID); !ok {
					continue
				}
				why = ""
				if x.Damage && j.Check(ctx, x.ID) == nil {
					why = "it can be read again"
				}
				break
			}
			if why == "" || ctx.Err() != nil {
				continue
			}
			if err := q.release(x.ID, why); err != nil {
				q.log.Warn("a message stays quarantined", "id", x.Name, "err", err)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// trouble says what a person should look at.
func (q *quarantine) trouble() []string {
	all := q.list()
	if len(all) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d messages are quarantined: they cannot be read; the first is %s of %s, see `msgw journal show`", len(all), all[0].Name, all[0].Mailbox)}
}

// watched reports the error that ends the reading of a message.
type watched struct {
	io.ReadCloser
	failed func(error)
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		w.failed(err)
	}
	return n, err
}

// Release lets a quarantined message be listed again.
func (n operator) Release(_ context.Context, id string) error {
	if n.witness {
		_, err := n.journals()
		return err
	}
	parsed, err := journal.ParseID(strings.ToLower(id))
	if err != nil {
		return admin.Errorf(http.StatusBadRequest, "", "%v", err)
	}
	err = n.quarantine.release(parsed, "an operator wanted it")
	if errors.Is(err, fs.ErrNotExist) {
		return admin.Errorf(http.StatusNotFound, "`msgw journal list` says which are", "message %s is not quarantined here", id)
	}
	return err
}
