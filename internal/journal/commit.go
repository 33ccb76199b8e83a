package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

// Message pairs the facts of a message with its sealed octets.
type Message struct {
	Meta Meta
	Body *Body
}

// commit is what one caller wants in the log: messages or tombstones.
type commit struct {
	messages []Message
	deletes  []*entry
	at       time.Time
	result   chan error
}

// maxBatch bounds the octets written with one flush.
const maxBatch = 8 << 20

// Commit makes messages durable and lists them; all of them or, if it returns an
// error, none. It returns only when the disk has answered. ErrDiskFull means that
// the same may succeed later; ErrFailed that it will not in this process, and that
// the next one may list messages that the disk has kept all the same.
func (j *Journal) Commit(ms ...Message) error {
	if err := j.unheld(ms); err != nil {
		return err
	}
	for _, m := range ms {
		if _, err := messageHeader(0, m.Meta); err != nil {
			return err
		}
		if err := m.Body.settle(); err != nil {
			return err
		}
	}
	if err := j.enqueue(&commit{messages: ms}); err != nil {
		return err
	}
	for _, m := range ms {
		m.Body.name, m.Body.mem = "", nil // the journal's now
		m.Body.err = errors.New("body was committed")
	}
	return nil
}

// unheld says which id of ms names another message already, or nil. Nothing is
// written under such an id, not even a body: that could replace the other's.
func (j *Journal) unheld(ms []Message) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	seen := make(map[ID]bool, len(ms))
	for _, m := range ms {
		id := m.Meta.ID
		if j.entries[id] != nil || seen[id] || m.Body.id != id {
			return fmt.Errorf("message id %s is another message's", id)
		}
		seen[id] = true
	}
	return nil
}

// Delete makes the deletion of messages durable. Those not held are ignored; those
// that another Delete is about to delete are deleted once more, so that nil means
// the same to both callers.
func (j *Journal) Delete(ids ...ID) error {
	j.mu.Lock()
	var es []*entry
	for _, id := range ids {
		if e := j.entries[id]; e != nil {
			e.deletes++
			es = append(es, e)
		}
	}
	j.mu.Unlock()
	for len(es) > 0 {
		n := min(len(es), maxTombstones)
		if err := j.enqueue(&commit{deletes: es[:n], at: time.Now()}); err != nil {
			j.mu.Lock()
			for _, e := range es {
				e.deletes-- // still there, for all anyone knows
			}
			j.mu.Unlock()
			return err
		}
		j.remove(es[:n])
		for _, e := range es[:n] {
			if e.Flags&bodyInFile != 0 {
				if err := j.fs.Remove(bodyPath(e.seg, e.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					j.log.Warn("cannot remove the body of a deleted message; the next start tries again", "id", e.ID, "err", err)
				}
			}
		}
		es = es[n:]
	}
	if err := j.prune(); err != nil {
		j.log.Warn("cannot give back the space of a drained segment; the next start tries again", "err", err)
	}
	return nil
}

func (j *Journal) enqueue(c *commit) error {
	c.result = make(chan error, 1)
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return ErrClosed
	}
	j.waiting = append(j.waiting, c)
	select {
	case j.commits <- struct{}{}:
	default: // it is awake
	}
	j.mu.Unlock()
	return <-c.result
}

// committer writes and flushes everything that came in while the last flush ran.
func (j *Journal) committer() {
	defer close(j.done)
	for range j.commits {
		for j.commitWaiting() {
		}
	}
	for j.commitWaiting() { // what came in before Close
	}
}

// commitWaiting commits one batch; false means that nobody waits.
func (j *Journal) commitWaiting() bool {
	j.mu.Lock()
	n, octets := 0, 0
	for n < len(j.waiting) && octets < maxBatch {
		for _, m := range j.waiting[n].messages {
			octets += len(m.Body.mem)
		}
		n++
	}
	batch := j.waiting[:n:n]
	j.waiting = j.waiting[n:]
	err := j.failed
	j.mu.Unlock()
	if n == 0 {
		return false
	}
	if err == nil {
		err = j.commitBatch(batch)
	}
	for _, c := range batch {
		c.result <- err
	}
	return true
}

// commitBatch writes batch behind the last record, flushes, and lists it.
func (j *Journal) commitBatch(batch []*commit) error {
	seg, err := j.segmentForAppend()
	if err != nil {
		return err
	}
	var buf []byte
	var added []*entry
	seq := j.seq
	for _, c := range batch {
		for _, m := range c.messages {
			meta := m.Meta
			meta.Sealed = m.Body.size
			m.Body.sum.Sum(meta.SHA256[:0])
			if meta.Flags &^= bodyInFile; m.Body.inFile() {
				meta.Flags |= bodyInFile
			}
			seq++
			header, err := messageHeader(seq, meta)
			if err != nil {
				return err
			}
			p := prefix{kind: kindMessage, flags: meta.Flags, durable: uint64(seg.size)}
			at := seg.size + int64(len(buf)) + prefixSize + int64(len(header))
			start := len(buf)
			buf = appendRecord(buf, p, header, m.Body.mem)
			q, _ := parsePrefix(buf[start:])
			added = append(added, &entry{Meta: meta, seg: seg, at: at, bodyCRC: q.bodyCRC})
		}
		if len(c.deletes) > 0 {
			seq++
			ids := make([]ID, len(c.deletes))
			for i, e := range c.deletes {
				ids[i] = e.ID
			}
			buf = appendRecord(buf, prefix{kind: kindTombstone, durable: uint64(seg.size)}, tombstoneHeader(seq, c.at, ids), nil)
		}
	}
	if err := j.write(seg, buf); err != nil {
		return err
	}
	j.seq = seq
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range added {
		j.list(e)
	}
	for _, c := range batch {
		for _, e := range c.deletes {
			if e.seg != seg && !e.seg.gone { // gone: an earlier tombstone did it
				seg.needs[e.seg] = true
			}
		}
	}
	return nil
}

// write puts records behind the last one of seg and flushes them.
func (j *Journal) write(seg *segment, records []byte) error {
	if _, err := seg.file.WriteAt(records, seg.size); err != nil {
		return j.undoWrite(seg, diskError("write "+seg.path, err))
	}
	if err := j.flush(seg.file.Sync); err != nil {
		return j.fail(fmt.Errorf("flush %s: %w", seg.path, err))
	}
	seg.size += int64(len(records))
	return nil
}

// finish writes the end mark, a tombstone without ids: it states that all before
// it was flushed, so that recovery takes none of it for torn.
func (j *Journal) finish(seg *segment) error {
	if seg.finished {
		return nil
	}
	mark := appendRecord(nil, prefix{kind: kindTombstone, durable: uint64(seg.size)}, tombstoneHeader(j.seq+1, time.Now(), nil), nil)
	if err := j.write(seg, mark); err != nil {
		return err
	}
	j.seq++
	seg.finished = true
	return nil
}

// undoWrite cuts off what a failed write left behind, so that the log goes on
// once there is room again. Nothing of it was flushed or acknowledged.
func (j *Journal) undoWrite(seg *segment, cause error) error {
	err := seg.file.Truncate(seg.size)
	if err == nil {
		err = seg.file.Sync()
	}
	if err != nil {
		return j.fail(errors.Join(cause, fmt.Errorf("cut back %s: %w", seg.path, err)))
	}
	j.log.Error("journal cannot write; the message was refused for now", "err", cause)
	return cause
}

// list adds a message to the index; j.mu is held.
func (j *Journal) list(e *entry) {
	j.entries[e.ID] = e
	j.drops[e.Mailbox] = append(j.drops[e.Mailbox], e)
	e.seg.live++
}

// segmentForAppend returns the segment to write to and begins a new one when
// there is none or it is full. Only the committer calls it.
func (j *Journal) segmentForAppend() (*segment, error) {
	if j.current != nil && j.current.size < j.opt.SegmentSize {
		return j.current, nil
	}
	if j.current != nil {
		if err := j.finish(j.current); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(j.dir, j.origin)
	if err := j.makeDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("%08d%s", j.number+1, segmentSuffix))
	f, err := j.fs.Create(path)
	if err != nil {
		return nil, diskError("begin segment", err)
	}
	if err := j.fs.SyncDir(dir); err != nil {
		f.Close()
		return nil, j.fail(fmt.Errorf("flush directory %s: %w", dir, err))
	}
	seg := &segment{origin: j.origin, path: path, file: f, needs: map[*segment]bool{}}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.number++
	j.current = seg
	j.segments = append(j.segments, seg)
	return seg, nil
}

// makeDir makes dir, whose parent exists, and makes its name durable.
func (j *Journal) makeDir(dir string) error {
	if err := j.fs.MkdirAll(dir); err != nil {
		return diskError("make directory", err)
	}
	if err := j.fs.SyncDir(filepath.Dir(dir)); err != nil {
		return j.fail(fmt.Errorf("flush directory %s: %w", filepath.Dir(dir), err))
	}
	return nil
}

// bodyDir returns the directory of this origin's large bodies, made on first use.
func (j *Journal) bodyDir() (string, error) {
	j.mu.Lock()
	dir := j.bodies
	j.mu.Unlock()
	if dir != "" {
		return dir, nil
	}
	origin := filepath.Join(j.dir, j.origin)
	if err := j.makeDir(origin); err != nil {
		return "", err
	}
	if err := j.makeDir(filepath.Join(origin, bodiesDir)); err != nil {
		return "", err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.bodies = filepath.Join(origin, bodiesDir)
	return j.bodies, nil
}
