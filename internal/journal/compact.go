package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"
)

// Compaction gives back the space of deleted messages that lie between waiting ones.
// What still counts in a segment is copied to the log's end; then nothing needs the
// segment, and prune removes it. A crash in between leaves two records of a message,
// which have one SHA-256; the newer counts.

const (
	// compactBatch is how many octets are copied with one flush, about.
	compactBatch = 1 << 20
	// keptTombSize is what one id takes in a copied tombstone.
	keptTombSize = 24
)

// keptTomb is a tombstone's id that still counts.
type keptTomb struct {
	id    ID
	at    time.Time
	flags Flags
}

// compactor waits for work until the journal is closed.
func (j *Journal) compactor() {
	for {
		select {
		case <-j.stop:
			return
		case <-j.compacting:
		}
		j.writeSides()
		err := j.compact()
		if err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrDiskFull) && !errors.Is(err, ErrFailed) { // those are logged
			j.log.Warn("cannot compact the journal now", "err", err)
		}
	}
}

// wakeCompactor says that there may be something to compact.
func (j *Journal) wakeCompactor() {
	select {
	case j.compacting <- struct{}{}:
	default: // it knows
	}
}

// compact goes on until no segment is worth it.
func (j *Journal) compact() error {
	for {
		s := j.sparse()
		if s == nil {
			return nil
		}
		err := j.compactSegment(s)
		j.mu.Lock()
		s.refs--
		j.closeIfUnused(s)
		j.mu.Unlock()
		if err == nil {
			err = j.prune()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
	}
}

// sparse returns a finished segment more than half of which is dead, or nil. The
// caller reads in it.
func (j *Journal) sparse() *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		counts := s.liveOctets + keptTombSize*int64(s.needed+s.graves)
		if s != j.current && !s.damaged && !s.stuck && counts < s.size/2 && (s.live > 0 || s.needed > 0 || s.graves > 0) {
			s.refs++
			return s
		}
	}
	return nil
}

// compactSegment copies what counts in s.
func (j *Journal) compactSegment(s *segment) error {
	stuck := func(at int64, err error) error {
		j.mu.Lock()
		defer j.mu.Unlock()
		s.stuck = true
		return fmt.Errorf("offset %d: %w", at, err)
	}
	records, bad, _, err := scan(s.file, s.size)
	if err == nil && len(bad) > 0 && s.finished {
		err = fmt.Errorf("%w: %w", ErrDamaged, bad[0].err)
	}
	if err != nil {
		return stuck(0, err)
	}
	c, octets := &commit{}, 0
	copied := false
	flush := func() error {
		if err := j.enqueue(c); err != nil {
			return err
		}
		copied = true
		err := j.pace(octets, j.opt.CompactRate)
		c, octets = &commit{}, 0
		return err
	}
	for _, r := range records {
		e := j.livesAt(s, r)
		if e == nil {
			continue
		}
		body := make([]byte, r.body)
		_, err := s.file.ReadAt(body, r.bodyAt)
		if whole, _ := r.bodyWhole(sliceAt{body, r.bodyAt}); err != nil && err != io.EOF || !whole {
			// Verification says so to whoever has to hear of it.
			err := j.verify(e.id, make([]byte, verifyChunk), func(int) error { return nil })
			if err == nil || errors.Is(err, ErrNotFound) {
				continue // replaced or deleted meanwhile
			}
			return stuck(r.at, err)
		}
		c.adds = append(c.adds, addition{meta: r.meta, body: body, moved: e, copied: true, was: place{s, r.at, e.id}})
		if octets += len(body) + prefixSize + messageHeaderSize; octets >= compactBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(c.adds) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	for kept := range slices.Chunk(j.keptTombs(s, records), maxTombstones) {
		c.tombs, c.from = kept, s
		octets = keptTombSize * len(kept)
		if err := flush(); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if !copied || s.needed > 0 || s.graves > 0 {
		s.stuck = true // counted wrongly: it stays, rather than being copied for ever
	}
	return nil
}

// sliceAt is octets of a file, beginning at an offset.
type sliceAt struct {
	b  []byte
	at int64
}

func (s sliceAt) ReadAt(p []byte, at int64) (int, error) {
	if at < s.at || at-s.at > int64(len(s.b)) {
		return 0, io.EOF
	}
	n := copy(p, s.b[at-s.at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// livesAt returns the held message whose record is r in s, or nil.
func (j *Journal) livesAt(s *segment, r scanned) *entry {
	if r.kind != kindMessage {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.entry(r.meta.ID)
	if e == nil || e.buried || e.place() != (place{s, r.at, e.id}) {
		return nil
	}
	return e
}

// keptTombs returns the tombstones in s that still count: those of records that lie in
// other segments, and graves.
func (j *Journal) keptTombs(s *segment, records []scanned) []keptTomb {
	needed := map[ID]bool{}
	j.mu.Lock()
	segments := slices.Clone(j.segments)
	j.mu.Unlock()
	for _, x := range segments {
		j.mu.Lock()
		for id, t := range x.dead {
			if t == s {
				needed[id] = true
			}
		}
		j.mu.Unlock()
	}
	var kept []keptTomb
	for _, r := range records {
		for i, id := range r.ids {
			j.mu.Lock()
			g, isGrave := j.graves[id]
			j.mu.Unlock()
			if needed[id] || isGrave && g.seg == s {
				kept = append(kept, keptTomb{id, r.timeOf(i), r.flags})
				delete(needed, id)
			}
		}
	}
	slices.SortStableFunc(kept, func(a, b keptTomb) int { return cmp.Compare(a.flags, b.flags) })
	return slices.CompactFunc(kept, func(a, b keptTomb) bool { return a.id == b.id })
}

// stillKept drops the tombstones of messages that are held again: a copy would be newer
// than their records. Those need no tombstone for their older records, as the newer
// one stands before these. The committer calls it.
func (j *Journal) stillKept(c *commit) []keptTomb {
	j.mu.Lock()
	defer j.mu.Unlock()
	var kept []keptTomb
	for _, k := range c.tombs {
		if j.entry(k.id) == nil {
			kept = append(kept, k)
			continue
		}
		for _, x := range j.segments {
			if x.dead[k.id] == c.from {
				delete(x.dead, k.id)
				c.from.needed--
				j.outdate(k.id, x)
			}
		}
	}
	return kept
}

// outdate notes that a held message has an older record in s; j.mu is held.
func (j *Journal) outdate(id ID, s *segment) {
	j.older[id] = append(j.older[id], s)
	s.outdated = append(s.outdated, id)
}

// rebury notes that tombstones of from are durable in t as well; j.mu is held.
func (j *Journal) rebury(kept []keptTomb, from, t *segment) {
	ids := make(map[ID]bool, len(kept))
	for _, k := range kept {
		ids[k.id] = true
		if g, ok := j.graves[k.id]; ok && g.seg == from {
			from.graves--
			t.graves++
			g.seg = t
			j.graves[k.id] = g
		}
	}
	for _, x := range j.segments {
		move := func(id ID) {
			if x.dead[id] != from || !ids[id] {
				return
			}
			from.needed--
			if delete(x.dead, id); x != t {
				x.dead[id] = t
				t.needed++
			}
		}
		if len(x.dead) < len(ids) {
			for id := range x.dead {
				move(id)
			}
		} else {
			for id := range ids {
				move(id)
			}
		}
	}
}

// pace waits as long as octets take at rate octets per second.
func (j *Journal) pace(octets int, rate int64) error {
	if rate < 0 {
		return nil
	}
	t := time.NewTimer(time.Duration(float64(octets) / float64(rate) * float64(time.Second)))
	defer t.Stop()
	select {
	case <-j.stop:
		return ErrClosed
	case <-t.C:
		return nil
	}
}

// keepBody notes where the body of a message lies whose record is copied from one
// origin to another; j.mu is held.
func (j *Journal) keepBody(e *entry, to *segment) {
	dir := filepath.Dir(j.bodyPath(e))
	if dir == filepath.Join(filepath.Dir(to.path), bodiesDir) {
		delete(j.bodyDirs, e.id)
	} else {
		j.bodyDirs[e.id] = dir
	}
}
