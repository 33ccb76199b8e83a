package journal

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"msgw/internal/disk"
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
	if opt.SegmentSize > maxSegment/2 {
		return nil, fmt.Errorf("open journal: segments of %d octets: at most %d", opt.SegmentSize, int64(maxSegment/2))
	}
	if opt.InlineMax == 0 {
		opt.InlineMax = 256 << 10
	}
	if opt.Reserve == 0 {
		opt.Reserve = 256 << 20
	}
	if opt.LowAt == 0 {
		opt.LowAt = 4 * opt.Reserve
	}
	if opt.ScrubRate == 0 {
		opt.ScrubRate = 4 << 20
	}
	if opt.ScrubEvery == 0 {
		opt.ScrubEvery = 24 * time.Hour
	}
	if opt.CompactRate == 0 {
		opt.CompactRate = 16 << 20
	}
	if opt.FS == nil {
		opt.FS = disk.OS{}
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	var raw [16]byte
	rand.Read(raw[:])
	ctx, cancel := context.WithCancel(context.Background()) // ended by Close
	j := &Journal{dir: dir, origin: hex.EncodeToString(raw[:]), opt: opt, fs: opt.FS, log: opt.Log,
		commits: make(chan struct{}, 1), done: make(chan struct{}), stop: ctx.Done(), cancel: cancel, compacting: make(chan struct{}, 1),
		flushes: map[*time.Time]bool{}, drops: map[string]*drop{}, owners: map[[2]string]*owner{}, pending: map[ID]bool{},
		removing: map[ID]bool{}, bodyDirs: map[ID]string{}, older: map[ID][]*segment{}, graves: map[ID]grave{}}
	if err := j.makeDir(dir); err != nil {
		cancel()
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := j.recover(); err != nil {
		cancel()
		for _, s := range j.segments {
			s.file.Close()
		}
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if opt.OnDamage != nil {
		for _, d := range j.damage {
			opt.OnDamage(d)
		}
	}
	go j.committer()
	if opt.CompactRate > 0 {
		j.background.Go(j.compactor)
	}
	if opt.ScrubRate > 0 {
		j.background.Go(func() { j.scrubber(ctx) })
	}
	if err := j.prune(); err != nil {
		j.log.Warn("cannot give back the space of a drained segment", "err", err)
	}
	j.wakeCompactor()
	return j, nil
}

// found is what recovery has read so far.
type found struct {
	tombs []tombstone
	// outdated are records of messages that have a newer one.
	outdated []place
	bodies   bool            // a message has its body in a file
	read     map[string]bool // origins of which a record was read
}

// place is where a record lies.
type place struct {
	seg *segment
	at  int64
	id  ID
}

// after reports whether a was written after b. Nobody can tell for two origins of one
// generation, which somebody copied; then it is not.
func (a place) after(b place) bool {
	switch {
	case a.seg.generation != b.seg.generation:
		return a.seg.generation > b.seg.generation
	case a.seg.origin != b.seg.origin:
		return false
	case a.seg.number != b.seg.number:
		return a.seg.number > b.seg.number
	}
	return a.at > b.at
}

type tombstone struct {
	seg *segment
	scanned
}

// place returns where the record of e lies.
func (e *entry) place() place { return place{e.seg, int64(e.start) * align, e.id} }

// recover reads what earlier processes left. Nobody else uses the journal yet.
func (j *Journal) recover() error {
	names, err := j.fs.ReadDir(j.dir)
	if err != nil {
		return err
	}
	f := &found{read: map[string]bool{}}
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
	j.generation = 1
	hidden := map[string]bool{} // logs of which nothing can be read now: each may have had its generation
	for _, s := range j.segments {
		j.generation = max(j.generation, s.generation+1)
		hidden[s.origin] = true
	}
	for o := range f.read {
		delete(hidden, o)
	}
	j.generation += uint32(len(hidden))
	j.applyTombstones(f)
	var es []*entry
	for i := range j.buckets {
		for _, e := range j.buckets[i].entries {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.received, b.received), bytes.Compare(a.id[:], b.id[:]))
	})
	for _, e := range es {
		j.list(e)
	}
	return j.sweepBodies(origins, f)
}

// applyTombstones takes out what was deleted. A tombstone deletes the records that are
// not newer than itself.
func (j *Journal) applyTombstones(f *found) {
	for _, o := range f.outdated {
		j.outdate(o.id, o.seg)
	}
	// In the order of their writing: an old deletion says nothing of what was stored later,
	// whatever became of that.
	slices.SortFunc(f.tombs, func(a, b tombstone) int {
		return cmp.Or(cmp.Compare(a.seg.generation, b.seg.generation), cmp.Compare(a.seg.origin, b.seg.origin),
			cmp.Compare(a.seg.number, b.seg.number), cmp.Compare(a.at, b.at))
	})
	for _, t := range f.tombs {
		for i, id := range t.ids {
			e := j.entry(id)
			if e != nil && e.place().after(place{seg: t.seg, at: t.at}) {
				continue
			}
			if e != nil {
				j.entomb([]*entry{e}, t.seg, t.flags, t.timeOf(i))
				j.unhold(e)
			} else if t.flags&tombEvicted == 0 {
				j.dig(id, t.seg, t.flags, t.timeOf(i))
			}
		}
	}
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

// isSide reports whether a file has the name of a side file.
func isSide(name string) bool {
	number, ok := strings.CutSuffix(name, sideSuffix)
	return ok && isSegment(number+segmentSuffix)
}

func (j *Journal) recoverOrigin(origin string, f *found) error {
	dir := filepath.Join(j.dir, origin)
	files, err := j.fs.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	sides := map[string]bool{}
	for _, e := range files {
		switch name := e.Name(); {
		case isSegment(name) && !e.IsDir():
			names = append(names, name)
		case isSide(name) && !e.IsDir():
			sides[name] = true
		case name != bodiesDir:
			j.log.Warn("journal: this is not the journal's and left alone", "file", filepath.Join(dir, name))
		}
	}
	// What the process before this one left in the machine's memory only must not count
	// and then be gone with the power. These are removals; segments are flushed below.
	if err := j.fs.SyncDir(dir); err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		delete(sides, sidePath(name))
	}
	for name := range sides { // of segments that went
		if err := j.fs.Remove(filepath.Join(dir, name)); err != nil {
			j.log.Warn("journal: cannot remove a side file without a segment", "file", filepath.Join(dir, name), "err", err)
		}
	}
	for i, name := range names {
		path := filepath.Join(dir, name)
		file, err := j.fs.Open(path)
		if err != nil {
			return err
		}
		number, _ := strconv.Atoi(strings.TrimSuffix(name, segmentSuffix))
		seg := &segment{origin: origin, path: path, file: file, number: number}
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
	if size > maxSegment {
		return fmt.Errorf("segment of %d octets: at most %d can be read", size, int64(maxSegment))
	}
	records, bad, durable, err := j.readHeaders(seg, size)
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
			if zeroFrom(seg.file, b.at, size) {
				continue // room that was reserved and never used
			}
			j.log.Warn("journal: passed over what a crash left unfinished", "file", seg.path, "offset", b.at)
			continue
		}
		j.damaged(seg, b.at, b.err)
	}
	for _, r := range records {
		if torn[r.at] {
			continue
		}
		seg.generation = r.generation
		f.read[seg.origin] = true
		if r.kind != kindMessage {
			f.tombs = append(f.tombs, tombstone{seg, r})
		} else {
			j.recoverMessage(seg, r, f)
		}
	}
	seg.size = size
	seg.finished = len(records) > 0 && records[len(records)-1].endMark()
	if !seg.finished {
		return seg.file.Sync()
	}
	return nil
}

// readHeaders reads the headers of a segment, from its side file if that fits.
func (j *Journal) readHeaders(seg *segment, size int64) (records []scanned, bad []flaw, durable int64, err error) {
	records, err = j.readSide(seg, size)
	if err == nil {
		seg.side = true
		return records, nil, int64(records[len(records)-1].durable), nil
	}
	changed := errors.Is(err, errChanged)
	if !errors.Is(err, fs.ErrNotExist) {
		j.log.Warn("journal: the side file of a segment is of no use", "file", sidePath(seg.path), "err", err)
	}
	if records, bad, durable, err = scan(seg.file, size); err == nil && changed {
		bad = append(bad, flaw{size, errChanged})
	}
	return records, bad, durable, err
}

// recoverMessage takes a message's record into the index. Of several records with one
// id and one SHA-256 the newest counts. Another SHA-256 makes another message, which
// nobody may have stored under this id.
func (j *Journal) recoverMessage(seg *segment, r scanned, f *found) {
	e := j.newEntry(r.meta, seg, r.at, r.bodyCRC)
	f.bodies = f.bodies || e.flags&bodyInFile != 0
	other := j.entry(e.id)
	if other == nil {
		j.hold(e)
		return
	}
	if e.place().after(other.place()) {
		_, size := other.record()
		other.seg.live--
		other.seg.liveOctets -= size
		j.hold(e)
		e, other = other, e
	}
	f.outdated = append(f.outdated, e.place())
	if other.sha != e.sha {
		j.damaged(e.seg, e.place().at, fmt.Errorf("%w: %s", errTwice, e.id))
	}
}

// damaged notes a place for a person to look at; its segment stays.
func (j *Journal) damaged(seg *segment, at int64, err error) {
	seg.damaged = true
	j.damage = append(j.damage, Damage{File: seg.path, Offset: at, Err: err})
	j.log.Error("journal is damaged: a record cannot be used", "file", seg.path, "offset", at, "err", err)
}
