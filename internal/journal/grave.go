package journal

import "time"

// Grave says that a message was deleted and that nobody has forgotten it yet.
type Grave struct {
	ID      ID
	At      time.Time // of the deletion
	Aborted bool      // it was never listed
}

// grave is a Grave and the segment with its tombstone.
type grave struct {
	at      int64
	seg     *segment
	aborted bool
}

// dig notes a grave, if graves are kept; j.mu is held.
func (j *Journal) dig(id ID, t *segment, flags Flags, at time.Time) {
	if _, ok := j.graves[id]; ok || !j.opt.KeepGraves {
		return
	}
	j.graves[id] = grave{at.UnixNano(), t, flags&tombAborted != 0}
	t.graves++
}

// Graves returns the deletions that were not forgotten, in no particular order. After
// a restart all tombstones that are still on the disk are graves again. Without
// Options.KeepGraves there are none.
func (j *Journal) Graves() []Grave {
	j.mu.Lock()
	defer j.mu.Unlock()
	gs := make([]Grave, 0, len(j.graves))
	for id, g := range j.graves {
		gs = append(gs, Grave{id, time.Unix(0, g.at).UTC(), g.aborted})
	}
	return gs
}

// Forget says that whoever had to hear of deletions has heard of these. Their space
// may return. Unknown ids are ignored.
func (j *Journal) Forget(ids ...ID) {
	j.mu.Lock()
	forgotten := false
	for _, id := range ids {
		if g, ok := j.graves[id]; ok {
			delete(j.graves, id)
			g.seg.graves--
			forgotten = true
		}
	}
	j.mu.Unlock()
	if !forgotten {
		return
	}
	if err := j.prune(); err != nil {
		j.log.Warn("cannot give back the space of a drained segment; the next start tries again", "err", err)
	}
}
