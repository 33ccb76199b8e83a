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
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"msgw/internal/disk"
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
	// ErrHeld says that a message with this id is held, or just being stored.
	ErrHeld = errors.New("message id is another message's")
	// ErrDeleted says that the message was deleted here, and its grave is not forgotten.
	ErrDeleted = errors.New("message was deleted")
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
	LowAt       int64 // octets of free disk below which Low warns; default 4 times Reserve
	// KeepGraves keeps the record of every deletion until Forget.
	KeepGraves bool
	// CompactRate bounds compaction, in octets copied per second; default 16 MiB. A
	// negative one turns it off.
	CompactRate int64
	// Every ScrubEvery, by default a day, all messages are read and checked, at ScrubRate
	// octets per second; default 4 MiB. A negative rate turns it off. OnDamage is told
	// what is found, by whoever reads: once for each message and process; by Open before
	// it returns what it found at start.
	ScrubEvery time.Duration
	ScrubRate  int64
	OnDamage   func(Damage)
	FS         disk.FS // default OS
	Log        *slog.Logger
}

// Journal is open for one process; see Open.
type Journal struct {
	dir    string
	origin string // this process's log, below dir
	opt    Options
	fs     disk.FS
	log    *slog.Logger

	commits chan struct{} // wakes the committer
	done    chan struct{} // closed when the committer has ended
	pruning sync.Mutex    // one prune at a time; held without mu

	buf []byte // the committer's

	stop       <-chan struct{} // closed by Close
	cancel     func()          // closes stop
	compacting chan struct{}   // wakes the compactor
	background sync.WaitGroup

	mu       sync.Mutex
	waiting  []*commit
	flushes  map[*time.Time]bool // starts of the flushes under way
	closed   bool
	failed   error
	buckets  [256]bucket
	drops    map[string]*drop     // per mailbox
	owners   map[[2]string]*owner // per mailbox and key
	pending  map[ID]bool          // being stored or replaced
	removing map[ID]bool          // deleted, and their body files are just being removed
	bodyDirs map[ID]string        // of bodies that lie in another origin than their records
	older    map[ID][]*segment    // with records of a held message that a newer one replaced
	graves   map[ID]grave
	segments []*segment
	current  *segment // nil until the first commit
	number   int      // of the current segment
	seq      uint64
	bodies   string // directory of this origin's large bodies, once made
	damage   []Damage

	generation uint32 // of this process; never changes
}

// segment is one file of a log.
type segment struct {
	origin, path string
	file         disk.File
	number       int    // in its origin
	generation   uint32 // of its origin
	size         int64  // end of its last record; of interest to the committer only
	finished     bool   // the end mark is written
	live         int    // messages in it that are not deleted
	liveOctets   int64  // of their records
	damaged      bool   // kept for a person to look at
	stuck        bool   // cannot be compacted by this process
	side         bool   // its side file is there, or cannot be written
	outdated     []ID   // held messages with an older record here
	// dead says for messages that are deleted and whose records are here which other
	// segment holds their tombstones. needed counts the other way round.
	dead    map[ID]*segment
	needed  int
	graves  int  // graves not forgotten whose tombstones are here
	refs    int  // readers
	gone    bool // removed from the list; closed when the last reader leaves
	removed bool // from the disk, for good
}

// Damage is a place in the journal that does not parse, or a message whose octets are
// not what was written.
type Damage struct {
	File   string
	Offset int64
	ID     ID // of the message, or zero if it is not known
	Err    error
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

// Low says, long before Room refuses, that the disk fills up. A disk that does not tell
// is taken for low.
func (j *Journal) Low() bool {
	free, err := j.fs.Free(j.dir)
	return err != nil || free < j.opt.LowAt
}

// Damaged lists what did not parse at start, and what was found damaged since and not
// repaired.
func (j *Journal) Damaged() []Damage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.damage)
}

// repaired forgets the damage of a message that is whole again, or gone; j.mu is held.
func (j *Journal) repaired(id ID) {
	n := len(j.damage)
	j.damage = slices.DeleteFunc(j.damage, func(d Damage) bool { return d.ID == id && id != ID{} })
	if len(j.damage) < n {
		for _, s := range j.segments {
			s.stuck = false // it may have been this message
		}
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
	j.cancel()
	j.background.Wait()
	close(j.commits)
	<-j.done
	j.mu.Lock()
	seg, failed := j.current, j.failed
	j.mu.Unlock()
	if seg != nil && failed == nil {
		if err := j.finish(seg); err != nil {
			j.log.Warn("cannot write the end mark; the next start takes this for a crash", "file", seg.path, "err", err)
		} else {
			j.mu.Lock()
			j.current = nil
			j.mu.Unlock()
			j.writeSides()
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
