// Package journal is the durable log of sealed messages at one site.
//
// It promises: a message for which Commit returned nil is on stable storage and
// is listed, after any crash too, until a Delete of it returned nil; what cannot
// be read back is an error, never other octets and never silence. It holds no
// key and opens no message.
//
// DESIGN.md describes the format octet by octet and what happens at each failure.
package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

var (
	// ErrFailed says that a flush failed. The journal accepts and deletes nothing
	// until the process was restarted; what is committed stays readable.
	ErrFailed = errors.New("journal stopped after a failed flush")
	// ErrStalled says that the disk has not answered a flush for StallTime. It ends
	// when the disk answers.
	ErrStalled = errors.New("disk does not answer")
	// ErrDiskFull says that there is no room. Nothing was stored.
	ErrDiskFull = errors.New("disk full")
	// ErrNotFound says that no such message is held.
	ErrNotFound = errors.New("no such message")
	// ErrDamaged says that stored octets are not what was written.
	ErrDamaged = errors.New("stored message is damaged")
	// ErrClosed says that the journal was closed.
	ErrClosed = errors.New("journal is closed")
)

// StallTime is how long a flush may last before the journal takes no new messages,
// so that senders turn to another host and do not queue up behind a dead disk.
const StallTime = 30 * time.Second

// Options of a journal. Zero fields mean the defaults.
type Options struct {
	SegmentSize int64 // octets after which a new segment begins; default 64 MiB
	InlineMax   int   // largest sealed message kept inside a segment; default 256 KiB
	Reserve     int64 // octets of free disk below which Room refuses; default 256 MiB
	FS          FS    // default OS
	Log         *slog.Logger
}

// Journal is open for one process; see Open.
type Journal struct {
	dir    string
	origin string // this process's log, below dir
	opt    Options
	fs     FS
	log    *slog.Logger

	commits chan struct{} // wakes the committer
	done    chan struct{} // closed when the committer has ended
	pruning sync.Mutex    // one prune at a time; held without mu

	mu       sync.Mutex
	waiting  []*commit
	flushes  map[*time.Time]bool // starts of the flushes under way
	closed   bool
	failed   error
	entries  map[ID]*entry
	drops    map[string][]*entry // per mailbox, in the order of their commit
	segments []*segment
	current  *segment // nil until the first commit
	number   int      // of the current segment
	seq      uint64
	bodies   string // directory of this origin's large bodies, once made
	damage   []Damage
}

// entry is a live message.
type entry struct {
	Meta
	seg     *segment
	at      int64 // of the body in its segment
	bodyCRC uint32
	deletes int // tombstones on their way or durable; not listed then
}

// segment is one file of a log.
type segment struct {
	origin, path string
	file         File
	size         int64 // end of its last record; of interest to the committer only
	finished     bool  // the end mark is written
	live         int   // messages in it that are not deleted
	damaged      bool  // kept for a person to look at
	// needs holds the segments with deleted messages whose tombstones are here.
	needs map[*segment]bool
	refs  int  // readers
	gone  bool // removed from the list; closed when the last reader leaves
}

// Damage is a place in the journal that does not parse.
type Damage struct {
	File   string
	Offset int64
	Err    error
}

// bodyPath is where a message of seg lies if it has a file of its own.
func bodyPath(seg *segment, id ID) string {
	return filepath.Join(filepath.Dir(seg.path), bodiesDir, id.String())
}

// Dir layout: <dir>/<origin>/00000001.seg and <dir>/<origin>/bodies/<message id>.
const (
	bodiesDir     = "bodies"
	tempSuffix    = ".tmp"
	segmentSuffix = ".seg"
)

// diskError adds what was tried, and makes a full disk recognisable.
func diskError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s: %w: %w", op, ErrDiskFull, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// fail stops the journal for good and returns the error to give.
func (j *Journal) fail(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed == nil {
		j.failed = fmt.Errorf("%w: %w", ErrFailed, err)
		j.log.Error("journal stopped: a flush failed; this node accepts no mail until it is restarted on a sound disk", "err", err)
	}
	return j.failed
}

// Err returns why the journal accepts nothing, or nil: ErrClosed, ErrFailed, or
// ErrStalled, which passes.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return ErrClosed
	}
	for start := range j.flushes {
		if d := time.Since(*start); j.failed == nil && d > StallTime {
			return fmt.Errorf("%w: a flush has lasted %v", ErrStalled, d.Truncate(time.Second))
		}
	}
	return j.failed
}

// flush runs a flush and notes for Err that it is under way.
func (j *Journal) flush(f func() error) error {
	start := time.Now()
	j.mu.Lock()
	j.flushes[&start] = true
	j.mu.Unlock()
	err := f()
	j.mu.Lock()
	delete(j.flushes, &start)
	j.mu.Unlock()
	return err
}

// Room returns nil if a message of size octets fits without eating into the
// reserve, or ErrDiskFull.
func (j *Journal) Room(size int64) error {
	free, err := j.fs.Free(j.dir)
	if err != nil {
		return fmt.Errorf("free disk below %s: %w", j.dir, err)
	}
	if free-size < j.opt.Reserve {
		return fmt.Errorf("%w: %d MiB free, %d MiB are kept in reserve", ErrDiskFull, free>>20, j.opt.Reserve>>20)
	}
	return nil
}

// Damaged lists what did not parse at start.
func (j *Journal) Damaged() []Damage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.damage)
}

// List returns the waiting messages of a mailbox: those of earlier processes in
// the order of their reception, then those of this one in the order of their commit.
func (j *Journal) List(mailbox string) []Meta {
	j.mu.Lock()
	defer j.mu.Unlock()
	drop := j.drops[mailbox]
	ms := make([]Meta, 0, len(drop))
	for _, e := range drop {
		if e.deletes == 0 {
			ms = append(ms, e.Meta)
		}
	}
	return ms
}

// Waiting sums up what waits in a mailbox.
type Waiting struct {
	Messages int
	Octets   int64 // of the messages as they came in
	Oldest   time.Time
	Keys     map[string]int // messages by key id
}

// Waiting sums up every mailbox that has messages.
func (j *Journal) Waiting() map[string]Waiting {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make(map[string]Waiting, len(j.drops))
	for mailbox, drop := range j.drops {
		w := Waiting{Keys: map[string]int{}}
		for _, e := range drop {
			if e.deletes > 0 {
				continue
			}
			if w.Messages == 0 || e.Received.Before(w.Oldest) {
				w.Oldest = e.Received
			}
			w.Messages++
			w.Octets += e.Octets
			w.Keys[e.Key]++
		}
		if w.Messages > 0 {
			all[mailbox] = w
		}
	}
	return all
}

// remove takes messages out of the index once their tombstones are durable.
func (j *Journal) remove(es []*entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	touched := map[string]bool{}
	for _, e := range es {
		if j.entries[e.ID] != e {
			continue // another Delete was faster
		}
		delete(j.entries, e.ID)
		e.seg.live--
		touched[e.Mailbox] = true
	}
	for mailbox := range touched {
		drop := slices.DeleteFunc(j.drops[mailbox], func(e *entry) bool { return j.entries[e.ID] != e })
		if j.drops[mailbox] = drop; len(drop) == 0 {
			delete(j.drops, mailbox)
		}
	}
}

// prune removes the segments that nothing needs: all their messages are deleted,
// and the messages that their tombstones delete are gone from the disk as well.
func (j *Journal) prune() error {
	j.pruning.Lock()
	defer j.pruning.Unlock()
	for {
		seg := j.takePrunable()
		if seg == nil {
			return nil
		}
		if err := j.fs.Remove(seg.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove drained segment: %w", err)
		}
		dir := filepath.Dir(seg.path)
		if err := j.fs.SyncDir(dir); err != nil {
			return fmt.Errorf("remove drained segment: %w", err)
		}
		j.mu.Lock()
		for _, s := range j.segments {
			delete(s.needs, seg) // nobody wants the tombstones of its messages now
		}
		j.mu.Unlock()
		if seg.origin != j.origin {
			// Both fail while anything is left in there; the next start looks again.
			_ = j.fs.Remove(filepath.Join(dir, bodiesDir))
			_ = j.fs.Remove(dir)
		}
	}
}

// takePrunable takes one segment that nothing needs out of the list.
func (j *Journal) takePrunable() *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, s := range j.segments {
		if s != j.current && s.live == 0 && len(s.needs) == 0 && !s.damaged {
			j.segments = slices.Delete(j.segments, i, i+1)
			s.gone = true
			j.closeIfUnused(s)
			return s
		}
	}
	return nil
}

func (j *Journal) closeIfUnused(s *segment) {
	if s.gone && s.refs == 0 {
		s.file.Close()
	}
}

// Close waits for commits under way and closes the files. Later calls fail with
// ErrClosed.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	close(j.commits)
	<-j.done
	j.mu.Lock()
	seg, failed := j.current, j.failed
	j.mu.Unlock()
	if seg != nil && failed == nil {
		if err := j.finish(seg); err != nil {
			j.log.Warn("cannot write the end mark; the next start takes this for a crash", "file", seg.path, "err", err)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, s := range j.segments {
		s.gone = true
		if s.refs == 0 {
			errs = append(errs, s.file.Close())
		}
	}
	j.segments = nil
	return errors.Join(errs...)
}
