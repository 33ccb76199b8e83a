package journal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
)

// Open reads the journal below dir and makes it ready. It mints a new origin: this
// process never appends to a log that another one wrote. A record torn by a crash
// at the end of a log is cut off; nothing else is changed, and what else does not
// parse is kept and listed by Damaged. One process at a time may have dir open;
// the caller sees to that.
func Open(dir string, opt Options) (*Journal, error) {
	if opt.SegmentSize == 0 {
		opt.SegmentSize = 64 << 20
	}
	if opt.InlineMax == 0 {
		opt.InlineMax = 256 << 10
	}
	if opt.Reserve == 0 {
		opt.Reserve = 256 << 20
	}
	if opt.FS == nil {
		opt.FS = OS{}
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	var raw [16]byte
	rand.Read(raw[:])
	j := &Journal{dir: dir, origin: hex.EncodeToString(raw[:]), opt: opt, fs: opt.FS, log: opt.Log,
		commits: make(chan struct{}, 1), done: make(chan struct{}),
		entries: map[ID]*entry{}, drops: map[string][]*entry{}}
	if err := j.makeDir(dir); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := j.recover(); err != nil {
		for _, s := range j.segments {
			s.file.Close()
		}
		return nil, fmt.Errorf("open journal: %w", err)
	}
	go j.committer()
	if err := j.prune(); err != nil {
		j.log.Warn("cannot give back the space of a drained segment", "err", err)
	}
	return j, nil
}

// found is what recovery has read so far.
type found struct {
	messages []*entry
	byID     map[ID]*entry
	tombs    []tombstone
}

type tombstone struct {
	seg *segment
	ids []ID
}

func (j *Journal) recover() error {
	origins, err := j.fs.ReadDir(j.dir)
	if err != nil {
		return err
	}
	f := &found{byID: map[ID]*entry{}}
	for _, o := range origins {
		if !o.IsDir() {
			continue
		}
		if err := j.recoverOrigin(o.Name(), f); err != nil {
			return err
		}
	}
	deleted := map[ID]bool{}
	for _, t := range f.tombs {
		for _, id := range t.ids {
			deleted[id] = true
			if e := f.byID[id]; e != nil && e.seg != t.seg {
				t.seg.needs[e.seg] = true
			}
		}
	}
	slices.SortStableFunc(f.messages, func(a, b *entry) int { return a.Received.Compare(b.Received) })
	for _, e := range f.messages {
		if !deleted[e.ID] {
			j.list(e)
		}
	}
	return j.sweepBodies(origins)
}

func (j *Journal) recoverOrigin(origin string, f *found) error {
	dir := filepath.Join(j.dir, origin)
	files, err := j.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range files {
		if strings.HasSuffix(e.Name(), segmentSuffix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	for i, name := range names {
		path := filepath.Join(dir, name)
		file, err := j.fs.Open(path)
		if err != nil {
			return err
		}
		seg := &segment{origin: origin, path: path, file: file, needs: map[*segment]bool{}}
		j.segments = append(j.segments, seg)
		if err := j.recoverSegment(seg, i == len(names)-1, f); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// recoverSegment reads the records of a segment into f.
func (j *Journal) recoverSegment(seg *segment, last bool, f *found) error {
	size, err := seg.file.Size()
	if err != nil {
		return err
	}
	records, bad, durable, err := scan(seg.file, size)
	if err != nil {
		return err
	}
	// Only what was written after the last flush of the last segment can be torn:
	// a record says how far the log was flushed when it was written.
	end := size
	for _, r := range records {
		if r.at >= durable && !r.bodyWhole(seg.file) {
			bad = append(bad, flaw{r.at, errCRC})
		}
	}
	slices.SortFunc(bad, func(a, b flaw) int { return int(a.at - b.at) })
	for _, b := range bad {
		if last && b.at >= durable {
			end = b.at
			break
		}
		seg.damaged = true
		j.damage = append(j.damage, Damage{seg.path, b.at, b.err})
		j.log.Error("journal is damaged: a record cannot be read", "file", seg.path, "offset", b.at, "err", b.err)
	}
	if end < size {
		j.log.Warn("journal: cut off what a crash left unfinished", "file", seg.path, "offset", end, "octets", size-end)
		if err := seg.file.Truncate(end); err != nil {
			return err
		}
		if err := seg.file.Sync(); err != nil {
			return err
		}
	}
	seg.size = end
	for _, r := range records {
		if r.at >= end {
			break
		}
		if r.kind == kindTombstone {
			f.tombs = append(f.tombs, tombstone{seg, r.ids})
			continue
		}
		e := &entry{Meta: r.meta, seg: seg, at: r.bodyAt, bodyCRC: r.bodyCRC}
		f.messages = append(f.messages, e)
		f.byID[e.ID] = e
	}
	return nil
}

// scanned is a record found in a segment.
type scanned struct {
	prefix
	at     int64
	bodyAt int64
	meta   Meta
	ids    []ID
}

// bodyWhole checks the inline body against its checksum.
func (r scanned) bodyWhole(f io.ReaderAt) bool {
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, io.NewSectionReader(f, r.bodyAt, r.body))
	return err == nil && n == r.body && sum.Sum32() == r.bodyCRC
}

// flaw is a place where a record should start and none does.
type flaw struct {
	at  int64
	err error
}

// scan reads the headers of a segment of size octets. After a flaw it goes on at
// the next record. durable is the largest flushed length that a record states.
// err is an error of the disk.
func scan(f io.ReaderAt, size int64) (records []scanned, bad []flaw, durable int64, err error) {
	broken := false // looking for the next record since the last flaw
	for at := int64(0); at < size; {
		r, err := readRecord(f, at, size)
		var disk *fs.PathError
		if errors.As(err, &disk) {
			return nil, nil, 0, err
		}
		if err != nil {
			if !broken {
				bad = append(bad, flaw{at, err})
			}
			broken = true
			at += align
			continue
		}
		broken = false
		records = append(records, r)
		durable = max(durable, int64(r.durable))
		at += r.size()
	}
	return records, bad, durable, nil
}

func readRecord(f io.ReaderAt, at, size int64) (scanned, error) {
	pre := make([]byte, prefixSize)
	if n, err := f.ReadAt(pre, at); err != nil && (err != io.EOF || n < prefixSize) {
		if err == io.EOF {
			err = errNotRecord
		}
		return scanned{}, err
	}
	p, err := parsePrefix(pre)
	if err != nil {
		return scanned{}, err
	}
	r := scanned{prefix: p, at: at, bodyAt: at + prefixSize + int64(p.header)}
	if at+p.size() > size {
		return scanned{}, errors.New("record is cut short")
	}
	header := make([]byte, p.header)
	if _, err := f.ReadAt(header, at+prefixSize); err != nil && err != io.EOF {
		return scanned{}, err
	}
	if err := checkHeader(pre, header); err != nil {
		return scanned{}, err
	}
	switch p.kind {
	case kindMessage:
		_, r.meta, err = parseMessageHeader(header, p.flags)
	case kindTombstone:
		_, r.ids, err = parseTombstoneHeader(header)
	default:
		err = fmt.Errorf("record kind %d is not known here", p.kind)
	}
	return r, err
}

// sweepBodies removes body files that no live message names and reports those
// that are missing. No log is open for writing yet.
func (j *Journal) sweepBodies(origins []fs.DirEntry) error {
	kept := map[string]bool{}
	for _, e := range j.entries {
		if e.Flags&bodyInFile != 0 {
			kept[bodyPath(e.seg, e.ID)] = true
		}
	}
	for _, o := range origins {
		dir := filepath.Join(j.dir, o.Name(), bodiesDir)
		files, err := j.fs.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || !o.IsDir() {
			continue
		}
		if err != nil {
			return err
		}
		hasDamage := slices.ContainsFunc(j.segments, func(s *segment) bool { return s.origin == o.Name() && s.damaged })
		for _, f := range files {
			path := filepath.Join(dir, f.Name())
			if kept[path] {
				delete(kept, path)
				continue
			}
			// The record of a body may be the one that cannot be read: keep it.
			if hasDamage && !strings.HasSuffix(path, tempSuffix) {
				continue
			}
			if err := j.fs.Remove(path); err != nil {
				return err
			}
		}
	}
	for _, o := range origins {
		if !slices.ContainsFunc(j.segments, func(s *segment) bool { return s.origin == o.Name() }) {
			// A process that stored nothing. Both fail if it left something after all.
			_ = j.fs.Remove(filepath.Join(j.dir, o.Name(), bodiesDir))
			_ = j.fs.Remove(filepath.Join(j.dir, o.Name()))
		}
	}
	for path := range kept {
		j.damage = append(j.damage, Damage{path, 0, fs.ErrNotExist})
		j.log.Error("journal is damaged: the body of a message is missing", "file", path)
	}
	return nil
}
