package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// commit is what one caller wants in the log: messages or tombstones.
type commit struct {
	adds    []addition
	deletes []*entry
	flags   Flags // of the tombstones
	at      time.Time
	tombs   []keptTomb // tombstones to copy from another segment
	from    *segment
	result  chan error
}

// addition is a message to be written.
type addition struct {
	meta  Meta
	body  []byte
	moved *entry // the message whose record this one takes the place of, or nil
	// copied says that the octets are those of the record at was, and that a body file
	// stays where it is.
	copied bool
	was    place
	// entry is set by the committer: what is held now; nil if moved was deleted before.
	entry *entry

	written bool
	start   int64 // of the record in its segment
	bodyCRC uint32
}

// alone says that the commit shares its flush with no tombstone: what it moves must not
// have been deleted in the same breath.
func (c *commit) alone() bool { return c.from != nil || len(c.adds) > 0 && c.adds[0].moved != nil }

// maxBatch bounds the octets written with one flush.
const maxBatch = 8 << 20

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
		if j.waiting[n].alone() {
			n = max(n, 1) // in a batch of its own
			break
		}
		for _, a := range j.waiting[n].adds {
			octets += len(a.body)
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
	clear(batch) // its array lives on under waiting, and would keep the bodies
	return true
}

// commitBatch writes batch behind the last record, flushes, and takes it into the index.
func (j *Journal) commitBatch(batch []*commit) error {
	seg, err := j.segmentForAppend()
	if err != nil {
		return err
	}
	buf := j.buf[:0]
	defer func() {
		if cap(buf) <= maxBatch {
			j.buf = buf // it is large, and needed again at once
		}
	}()
	seq := j.seq
	for _, c := range batch {
		for i := range c.adds {
			a := &c.adds[i]
			if a.moved != nil && !j.mayMove(a) {
				continue
			}
			seq++
			header, err := messageHeader(seq, a.meta)
			if err != nil {
				return err
			}
			a.written, a.start = true, seg.size+int64(len(buf))
			start := len(buf)
			buf = appendRecord(buf, prefix{kind: kindMessage, flags: a.meta.Flags, durable: uint64(seg.size), generation: j.generation}, header, a.body)
			q, _ := parsePrefix(buf[start:])
			a.bodyCRC = q.bodyCRC
		}
		if len(c.deletes) > 0 {
			seq++
			ids := make([]ID, len(c.deletes))
			for i, e := range c.deletes {
				ids[i] = e.id
			}
			buf = appendRecord(buf, prefix{kind: kindTombstone, flags: c.flags, durable: uint64(seg.size), generation: j.generation},
				tombstoneHeader(seq, c.at, ids), nil)
		}
		if c.from != nil {
			c.tombs = j.stillKept(c)
			for kept := range slices.Chunk(c.tombs, maxCopiedTombs) {
				for len(kept) > 0 {
					n := slices.IndexFunc(kept, func(k keptTomb) bool { return k.flags != kept[0].flags })
					if n < 0 {
						n = len(kept)
					}
					seq++
					buf = appendRecord(buf, prefix{kind: kindCopied, flags: kept[0].flags, durable: uint64(seg.size), generation: j.generation},
						copiedHeader(seq, kept[:n]), nil)
					kept = kept[n:]
				}
			}
		}
	}
	if err := j.write(seg, buf); err != nil {
		return err
	}
	j.seq = seq
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range batch {
		for i := range c.adds {
			switch a := &c.adds[i]; {
			case a.moved == nil:
				a.entry = j.newEntry(a.meta, seg, a.start, a.bodyCRC)
				j.hold(a.entry)
			case a.written:
				j.move(a, seg)
				a.entry = a.moved
			}
		}
		j.entomb(c.deletes, seg, c.flags, c.at)
		if c.from != nil {
			j.rebury(c.tombs, c.from, seg)
		}
	}
	return nil
}

// mayMove says that the message is held and that no tombstone for it was written: a
// record behind it would bring the message back. What is copied must still be its record.
func (j *Journal) mayMove(a *addition) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := a.moved
	return !e.buried && j.entry(e.id) == e && (!a.copied || e.place() == a.was)
}

// move notes that the record of a message is durable in seg, in the place of an older
// one; j.mu is held.
func (j *Journal) move(a *addition, seg *segment) {
	e, old := a.moved, a.moved.seg
	_, size := e.record()
	old.liveOctets -= size
	old.live--
	if old != seg && !old.removed {
		j.outdate(e.id, old)
	}
	if a.copied && e.flags&bodyInFile != 0 {
		j.keepBody(e, seg)
	} else {
		delete(j.bodyDirs, e.id)
	}
	e.seg, e.start, e.bodyCRC, e.flags = seg, uint32(a.start/align), a.bodyCRC, a.meta.Flags
	_, size = e.record()
	seg.liveOctets += size
	seg.live++
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
	// Give back the room that was not used: a finished segment ends with its end mark.
	if err := seg.file.Truncate(seg.size); err != nil {
		return diskError("finish "+seg.path, err)
	}
	mark := appendRecord(nil, prefix{kind: kindTombstone, durable: uint64(seg.size), generation: j.generation}, tombstoneHeader(j.seq+1, time.Now(), nil), nil)
	if err := j.write(seg, mark); err != nil {
		return err
	}
	j.seq++
	seg.finished = true
	j.wakeCompactor()
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
	// A flush into room that is there need not write the file's size as well. If the
	// room runs short the log grows as it is written.
	if j.Room(j.opt.SegmentSize) == nil {
		if err := f.Allocate(j.opt.SegmentSize); err != nil {
			j.log.Debug("no room was reserved for a segment", "file", path, "err", err)
		}
	}
	if err := j.fs.SyncDir(dir); err != nil {
		f.Close()
		return nil, j.fail(fmt.Errorf("flush directory %s: %w", dir, err))
	}
	seg := &segment{origin: j.origin, path: path, file: f, generation: j.generation, number: j.number + 1}
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
