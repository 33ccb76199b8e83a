package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// Delete makes the deletion of messages durable. Those not held are ignored; those
// that another Delete is about to delete are deleted once more, so that nil means
// the same to both callers.
func (j *Journal) Delete(ids ...ID) error {
	j.mu.Lock()
	var es []*entry
	for _, id := range ids {
		if e := j.entry(id); e != nil {
			j.hide(e)
			es = append(es, e)
		}
	}
	j.mu.Unlock()
	return j.bury(es, 0)
}

// bury writes tombstones for hidden messages and gives back their space.
func (j *Journal) bury(es []*entry, flags Flags) error {
	for len(es) > 0 {
		n := min(len(es), maxTombstones)
		if err := j.enqueue(&commit{deletes: es[:n], flags: flags, at: time.Now()}); err != nil {
			j.mu.Lock()
			for _, e := range es {
				j.unhide(e)
			}
			j.mu.Unlock()
			return err
		}
		j.remove(es[:n])
		es = es[n:]
	}
	if err := j.prune(); err != nil {
		j.log.Warn("cannot give back the space of a drained segment; the next start tries again", "err", err)
	}
	return nil
}

// remove takes messages out of the index once their tombstones are durable, and
// removes their bodies. Nobody may store a body under an id before the old is gone.
func (j *Journal) remove(es []*entry) {
	type file struct {
		id   ID
		path string
	}
	var files []file
	j.mu.Lock()
	for _, e := range es {
		path := j.bodyPath(e)
		if j.unhold(e) && e.flags&bodyInFile != 0 {
			files = append(files, file{e.id, path})
			delete(j.bodyDirs, e.id)
			j.removing[e.id] = true
		}
		j.repaired(e.id)
	}
	j.mu.Unlock()
	for _, f := range files {
		j.removeBody(f.id, f.path)
		j.mu.Lock()
		delete(j.removing, f.id)
		j.mu.Unlock()
	}
}

func (j *Journal) removeBody(id ID, path string) {
	if err := j.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.log.Warn("cannot remove a body that no message needs; the next start tries again", "id", id, "err", err)
	}
}

// entomb notes that the tombstones of es are durable in t. From now on t may not go
// before the segments that hold what it deletes. j.mu is held.
func (j *Journal) entomb(es []*entry, t *segment, flags Flags, at time.Time) {
	for _, e := range es {
		if e.buried {
			continue // an earlier tombstone did it
		}
		e.buried = true
		_, size := e.record()
		e.seg.liveOctets -= size
		for _, s := range append(j.older[e.id], e.seg) {
			s.lay(e.id, t)
		}
		delete(j.older, e.id)
		if flags&tombEvicted == 0 {
			j.dig(e.id, t, flags, at)
		}
	}
}

// lay notes that s holds a record of id that t keeps dead.
func (s *segment) lay(id ID, t *segment) {
	if s == t || s.removed || s.dead[id] != nil {
		return
	}
	if s.dead == nil {
		s.dead = map[ID]*segment{}
	}
	s.dead[id] = t
	t.needed++
}

// prune removes the segments that nothing needs: all their messages are deleted or
// stored again elsewhere, the messages that their tombstones delete are gone from the
// disk as well, and their graves are forgotten.
func (j *Journal) prune() error {
	j.pruning.Lock()
	defer j.pruning.Unlock()
	for {
		seg := j.takePrunable()
		if seg == nil {
			j.wakeCompactor()
			return nil
		}
		j.removeSide(seg)
		if err := j.fs.Remove(seg.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diskError("remove drained segment", err)
		}
		dir := filepath.Dir(seg.path)
		if err := j.fs.SyncDir(dir); err != nil {
			return j.fail(fmt.Errorf("flush directory %s: %w", dir, err))
		}
		j.mu.Lock()
		seg.removed = true
		for _, t := range seg.dead {
			t.needed-- // nobody wants the tombstones of its messages now
		}
		for _, id := range seg.outdated {
			if j.older[id] = slices.DeleteFunc(j.older[id], func(s *segment) bool { return s == seg }); len(j.older[id]) == 0 {
				delete(j.older, id)
			}
		}
		seg.dead, seg.outdated = nil, nil
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
		if s != j.current && s.live == 0 && s.needed == 0 && s.graves == 0 && !s.damaged {
			j.segments = append(j.segments[:i:i], j.segments[i+1:]...)
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
