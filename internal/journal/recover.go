package journal

import (
	"cmp"
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
	"time"
)

// Open reads the journal below dir and makes it ready. It mints a new origin: this
// process never writes to a log that another one wrote, not even to mend it. What a
// crash left unfinished at the end of a log is passed over; what else does not parse
// is kept and listed by Damaged. One process at a time may have dir open; the caller
// sees to that.
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
		flushes: map[*time.Time]bool{}, entries: map[ID]*entry{}, drops: map[string][]*entry{}}
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
	byID     map[ID][]*entry // all records of an id, those not listed too
	tombs    []tombstone
}

type tombstone struct {
	seg *segment
	ids []ID
}

func (j *Journal) recover() error {
	names, err := j.fs.ReadDir(j.dir)
	if err != nil {
		return err
	}
	f := &found{byID: map[ID][]*entry{}}
	var origins []string
	for _, o := range names {
		if !o.IsDir() || !isOrigin(o.Name()) {
			j.log.Warn("journal: this is not the journal's and left alone", "file", filepath.Join(j.dir, o.Name()))
			continue
		}
		origins = append(origins, o.Name())
		if err := j.recoverOrigin(o.Name(), f); err != nil {
			return err
		}
	}
	deleted := map[ID]bool{}
	for _, t := range f.tombs {
		for _, id := range t.ids {
			deleted[id] = true
			for _, e := range f.byID[id] {
				if e.seg != t.seg {
					t.seg.needs[e.seg] = true
				}
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

// isOrigin reports whether a directory has the name of a log.
func isOrigin(name string) bool {
	raw, err := hex.DecodeString(name)
	return err == nil && len(raw) == 16
}

// isSegment reports whether a file has the name of a segment.
func isSegment(name string) bool {
	number, ok := strings.CutSuffix(name, segmentSuffix)
	return ok && len(number) == 8 && strings.Trim(number, "0123456789") == ""
}

func (j *Journal) recoverOrigin(origin string, f *found) error {
	dir := filepath.Join(j.dir, origin)
	files, err := j.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range files {
		switch name := e.Name(); {
		case isSegment(name) && !e.IsDir():
			names = append(names, name)
		case name != bodiesDir:
			j.log.Warn("journal: this is not the journal's and left alone", "file", filepath.Join(dir, name))
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
	// A record says how far the segment was flushed when it was written. What lies
	// behind the largest such mark may have been on its way to the disk when a crash
	// came: there, bodies are checked too.
	torn := map[int64]bool{}
	for _, r := range records {
		if r.at < durable {
			continue
		}
		switch whole, err := r.bodyWhole(seg.file); {
		case err != nil:
			bad = append(bad, flaw{r.at, fmt.Errorf("%w: %w", errUnreadable, err)})
		case !whole:
			bad = append(bad, flaw{r.at, errCRC})
			torn[r.at] = last
		}
	}
	slices.SortStableFunc(bad, func(a, b flaw) int { return cmp.Compare(a.at, b.at) })
	if !last && (len(records) == 0 || !records[len(records)-1].endMark()) && len(bad) == 0 {
		bad = append(bad, flaw{size, errNoEnd}) // the next one was begun after this one was finished
	}
	for _, b := range bad {
		if last && b.at >= durable && mayBeTorn(b.err) {
			j.log.Warn("journal: passed over what a crash left unfinished", "file", seg.path, "offset", b.at)
			continue
		}
		j.damaged(seg, b.at, b.err)
	}
	for _, r := range records {
		switch {
		case torn[r.at]:
		case r.kind == kindTombstone:
			f.tombs = append(f.tombs, tombstone{seg, r.ids})
		default:
			e := &entry{Meta: r.meta, seg: seg, at: r.bodyAt, bodyCRC: r.bodyCRC}
			if f.byID[e.ID] != nil {
				j.damaged(seg, r.at, fmt.Errorf("%w: %s", errTwice, e.ID))
			} else {
				f.messages = append(f.messages, e)
			}
			f.byID[e.ID] = append(f.byID[e.ID], e)
		}
	}
	return nil
}

// damaged notes a place for a person to look at; its segment stays.
func (j *Journal) damaged(seg *segment, at int64, err error) {
	seg.damaged = true
	j.damage = append(j.damage, Damage{seg.path, at, err})
	j.log.Error("journal is damaged: a record cannot be used", "file", seg.path, "offset", at, "err", err)
}

var (
	errUnreadable = errors.New("disk cannot be read here")
	errNoEnd      = errors.New("segment ends before its end mark")
	errTwice      = errors.New("message is held twice, this one is not listed")
)

// mayBeTorn reports whether a write that a power cut ended leaves such a flaw. What
// is whole and not understood was written by a newer msgw, and is never that.
func mayBeTorn(err error) bool {
	return errors.Is(err, errNotRecord) || errors.Is(err, errCRC) || errors.Is(err, errShort)
}

// scanned is a record found in a segment.
type scanned struct {
	prefix
	at     int64
	bodyAt int64
	meta   Meta
	ids    []ID
}

// endMark reports whether the writer of the segment finished it with this record.
func (r scanned) endMark() bool { return r.kind == kindTombstone && len(r.ids) == 0 }

// bodyWhole checks the inline body against its checksum. The error is the disk's.
func (r scanned) bodyWhole(f io.ReaderAt) (bool, error) {
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, io.NewSectionReader(f, r.bodyAt, r.body))
	return n == r.body && sum.Sum32() == r.bodyCRC, err
}

// flaw is a place where a record should start and none does.
type flaw struct {
	at  int64
	err error
}

const (
	// sector is how far to go on from a place that the disk cannot read.
	sector = 4096
	// maxUnreadable is how many such places make a disk that is failing.
	maxUnreadable = 64
)

// scan reads the headers of a segment of size octets. After a flaw it goes on at
// the next record. durable is the largest flushed length that a record states.
// err says that the disk is failing.
func scan(f io.ReaderAt, size int64) (records []scanned, bad []flaw, durable int64, err error) {
	broken := false // looking for the next record since the last flaw
	unreadable := 0
	for at := int64(0); at < size; {
		r, err := readRecord(f, at, size)
		if err == nil {
			broken = false
			records = append(records, r)
			durable = max(durable, int64(r.durable))
			at += r.size()
			continue
		}
		if !broken || !mayBeTorn(err) && mayBeTorn(bad[len(bad)-1].err) {
			bad = append(bad, flaw{at, err})
		}
		broken = true
		at += align
		if errors.Is(err, errUnreadable) {
			if unreadable++; unreadable > maxUnreadable {
				return nil, nil, 0, err
			}
			at = (at-align)/sector*sector + sector
		}
	}
	return records, bad, durable, nil
}

func readRecord(f io.ReaderAt, at, size int64) (scanned, error) {
	pre := make([]byte, prefixSize)
	if n, err := f.ReadAt(pre, at); n < prefixSize {
		if err == io.EOF {
			return scanned{}, errNotRecord
		}
		return scanned{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	p, err := parsePrefix(pre)
	if err != nil {
		return scanned{}, err
	}
	r := scanned{prefix: p, at: at, bodyAt: at + prefixSize + int64(p.header)}
	if at+p.size() > size {
		return scanned{}, errShort
	}
	header := make([]byte, p.header)
	if n, err := f.ReadAt(header, at+prefixSize); n < len(header) {
		return scanned{}, fmt.Errorf("%w: %w", errUnreadable, err)
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
func (j *Journal) sweepBodies(origins []string) error {
	kept := map[string]bool{}
	for _, e := range j.entries {
		if e.Flags&bodyInFile != 0 {
			kept[bodyPath(e.seg, e.ID)] = true
		}
	}
	for _, o := range origins {
		dir := filepath.Join(j.dir, o, bodiesDir)
		files, err := j.fs.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		hasDamage := slices.ContainsFunc(j.segments, func(s *segment) bool { return s.origin == o && s.damaged })
		for _, f := range files {
			path := filepath.Join(dir, f.Name())
			if kept[path] {
				delete(kept, path)
				continue
			}
			id, temp := strings.CutSuffix(f.Name(), tempSuffix)
			if _, err := ParseID(id); err != nil || f.IsDir() {
				j.log.Warn("journal: this is not the journal's and left alone", "file", path)
				continue
			}
			// The record of a body may be the one that cannot be read: keep it.
			if hasDamage && !temp {
				continue
			}
			if err := j.fs.Remove(path); err != nil {
				return err
			}
		}
	}
	for _, o := range origins {
		if !slices.ContainsFunc(j.segments, func(s *segment) bool { return s.origin == o }) {
			// A process that stored nothing. Both fail if it left something after all.
			_ = j.fs.Remove(filepath.Join(j.dir, o, bodiesDir))
			_ = j.fs.Remove(filepath.Join(j.dir, o))
		}
	}
	for path := range kept {
		j.damage = append(j.damage, Damage{path, 0, fs.ErrNotExist})
		j.log.Error("journal is damaged: the body of a message is missing", "file", path)
	}
	return nil
}
