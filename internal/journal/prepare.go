package journal

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Message pairs the facts of a message with its sealed octets. Sealed and SHA256 are
// set by the journal; where they are given, the octets must be those.
type Message struct {
	Meta Meta
	Body *Body
}

// Prepared is messages that are durable and not yet listed. List or Abort ends it. One
// that is given up without either stays as it is, found and not listed, until the next
// start lists it.
type Prepared struct {
	j       *Journal
	entries []*entry
}

// Commit makes messages durable and lists them; all of them or, if it returns an
// error, none. It returns only when the disk has answered. ErrDiskFull means that
// the same may succeed later; ErrFailed that it will not in this process, and that
// the next one may list messages that the disk has kept all the same. ErrHeld means
// that another message has an id, ErrDamaged that octets are not those that the
// message states.
func (j *Journal) Commit(ms ...Message) error {
	p, err := j.Prepare(ms...)
	if err != nil {
		return err
	}
	p.List()
	return nil
}

// Prepare makes messages durable without listing them, with Commit's errors. Open and
// Has find them. After a crash before List or Abort the next process lists them.
func (j *Journal) Prepare(ms ...Message) (*Prepared, error) {
	ids := make([]ID, len(ms))
	for i, m := range ms {
		ids[i] = m.Meta.ID
		if m.Body.id != m.Meta.ID {
			return nil, fmt.Errorf("%s: %w: its body is that of %s", m.Meta.ID, ErrHeld, m.Body.id)
		}
	}
	if err := j.reserve(ids); err != nil {
		return nil, err
	}
	defer j.release(ids)
	c := &commit{adds: make([]addition, len(ms))}
	err := error(nil)
	for i := 0; i < len(ms) && err == nil; i++ {
		c.adds[i].body = ms[i].Body.mem
		c.adds[i].meta, err = ms[i].Body.complete(ms[i].Meta)
	}
	if err == nil {
		err = j.enqueue(c)
	}
	if err != nil {
		for _, m := range ms { // while nobody else may store anything under these ids
			m.Body.Discard()
		}
		return nil, err
	}
	p := &Prepared{j: j, entries: make([]*entry, len(ms))}
	for i, m := range ms {
		m.Body.taken()
		p.entries[i] = c.adds[i].entry
	}
	return p, nil
}

// complete makes a body durable if it has a file of its own, and returns m with what
// is known of its octets. Octets other than m states are ErrDamaged.
func (b *Body) complete(m Meta) (Meta, error) {
	if b.err != nil {
		return m, b.err
	}
	var sum [32]byte
	b.sum.Sum(sum[:0])
	if m.SHA256 != [32]byte{} && m.SHA256 != sum || m.Sealed != 0 && m.Sealed != b.size {
		return m, fmt.Errorf("%s: %w: %d octets with SHA-256 %x, expected %d with %x", m.ID, ErrDamaged, b.size, sum, m.Sealed, m.SHA256)
	}
	m.SHA256, m.Sealed = sum, b.size
	if m.Flags &^= bodyInFile; b.inFile() {
		m.Flags |= bodyInFile
	}
	if _, err := messageHeader(0, m); err != nil {
		return m, err
	}
	return m, b.settle()
}

// taken says that the octets are the journal's now.
func (b *Body) taken() {
	b.name, b.mem = "", nil
	b.err = errors.New("body was committed")
}

// reserve keeps ids for the caller until release. Nothing is written under the id of
// another message, not even a body: that could replace the other's. With KeepGraves
// an id whose deletion is not forgotten is refused as well: the deletion stands.
func (j *Journal) reserve(ids []ID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, id := range ids {
		err := error(nil)
		if _, dead := j.graves[id]; dead {
			err = fmt.Errorf("%s: %w", id, ErrDeleted)
		} else if j.pending[id] || j.removing[id] || j.entry(id) != nil {
			err = fmt.Errorf("%s: %w", id, ErrHeld)
		}
		if err != nil {
			j.releaseLocked(ids[:i])
			return err
		}
		j.pending[id] = true
	}
	return nil
}

func (j *Journal) release(ids []ID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.releaseLocked(ids)
}

func (j *Journal) releaseLocked(ids []ID) {
	for _, id := range ids {
		delete(j.pending, id)
	}
}

// List makes the messages visible. Those that were deleted meanwhile stay so.
func (p *Prepared) List() {
	p.j.mu.Lock()
	defer p.j.mu.Unlock()
	for _, e := range p.entries {
		p.j.list(e)
	}
}

// Abort deletes the messages: they are never listed, in later processes neither. If
// it fails they are still prepared, and Abort or List may follow.
func (p *Prepared) Abort() error {
	p.j.mu.Lock()
	var es []*entry
	for _, e := range p.entries {
		if p.j.entry(e.id) == e {
			p.j.hide(e)
			es = append(es, e)
		}
	}
	p.j.mu.Unlock()
	return p.j.bury(es, tombAborted)
}

// Restore commits a message that comes from elsewhere: its id, time, size and SHA-256
// are given, and octets that do not have them are ErrDamaged. Errors as of Commit, and
// ErrDeleted for one whose deletion is known here and not forgotten.
func (j *Journal) Restore(m Meta, b *Body) error {
	if m.SHA256 == [32]byte{} {
		return fmt.Errorf("%s: %w: a copy without a SHA-256", m.ID, ErrDamaged)
	}
	return j.Commit(Message{m, b})
}

// Replace puts good octets in the place of damaged ones. They must have the size and
// SHA-256 that the message states, else ErrDamaged. A crash leaves the one or the
// other. ErrNotFound means that id is not held or was deleted meanwhile.
func (j *Journal) Replace(id ID, b *Body) error {
	j.mu.Lock()
	e := j.entry(id)
	if e == nil || e.deletes > 0 || b.id != id {
		j.mu.Unlock()
		return fmt.Errorf("%s: %w", id, ErrNotFound)
	}
	if j.pending[id] {
		j.mu.Unlock()
		return fmt.Errorf("%s: %w: it is being replaced", id, ErrHeld)
	}
	j.pending[id] = true
	meta, old := e.meta(), ""
	if e.flags&bodyInFile != 0 {
		old = j.bodyPath(e)
	}
	j.mu.Unlock()
	defer j.release([]ID{id})
	err := j.replace(e, meta, old, b)
	if err != nil {
		b.Discard() // while nobody else may store anything under this id
		return err
	}
	b.taken()
	j.mu.Lock()
	j.repaired(id)
	j.mu.Unlock()
	if err := j.prune(); err != nil {
		j.log.Warn("cannot give back the space of a drained segment; the next start tries again", "err", err)
	}
	return nil
}

// replace stores b for e, whose body lies in the file old, or in its segment.
func (j *Journal) replace(e *entry, meta Meta, old string, b *Body) error {
	meta, err := b.complete(meta)
	if err != nil {
		return err
	}
	deleted := fmt.Errorf("%s: %w: it was deleted meanwhile", e.id, ErrNotFound)
	if b.inFile() && b.dest == old {
		// It took the other's name and is that message's body from now on, whatever
		// becomes of the record.
		b.name = ""
		if j.elsewhere(e, old) {
			j.removeBody(e.id, old)
			return deleted
		}
	}
	c := &commit{adds: []addition{{meta: meta, body: b.mem, moved: e}}}
	if err := j.enqueue(c); err != nil {
		return err
	}
	if c.adds[0].entry == nil {
		return deleted
	}
	if old != "" && old != b.dest {
		j.removeBody(e.id, old)
	}
	return nil
}

// Evict drops a bad copy and leaves no grave, so that another site's copy can be
// restored under the same id. One that is not held is ignored.
func (j *Journal) Evict(id ID) error {
	j.mu.Lock()
	var es []*entry
	if e := j.entry(id); e != nil {
		j.hide(e)
		es = append(es, e)
	}
	j.mu.Unlock()
	return j.bury(es, tombEvicted)
}

// bodyPath is where the body of e lies if it has a file of its own; j.mu is held. That
// is its record's origin, unless the record was copied since.
func (j *Journal) bodyPath(e *entry) string {
	dir := j.bodyDirs[e.id]
	if dir == "" {
		dir = filepath.Join(filepath.Dir(e.seg.path), bodiesDir)
	}
	return filepath.Join(dir, e.id.String())
}
