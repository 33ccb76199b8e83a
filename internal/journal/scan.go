package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

var (
	errUnreadable = errors.New("disk cannot be read here")
	errNoEnd      = errors.New("segment ends before its end mark")
	errTwice      = errors.New("two messages have one id, this one is not listed")
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
	ids    []ID        // that tombstones name
	times  []time.Time // one for all of them or one each
}

// timeOf returns the time of the tombstone of ids[i].
func (r scanned) timeOf(i int) time.Time { return r.times[min(i, len(r.times)-1)] }

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
	// maxSegment is how far entry.start reaches.
	maxSegment = 1 << 32 * align
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
		} else {
			at = nextMagic(f, at, size)
		}
	}
	return records, bad, durable, nil
}

// searchChunk is how much is searched at a time for the next record.
const searchChunk = 64 << 10

// nextMagic returns the first multiple of 8 from at where a record may start, or where
// the disk cannot be read, or size.
func nextMagic(f io.ReaderAt, at, size int64) int64 {
	buf := make([]byte, min(searchChunk, size-at+align))
	for at < size {
		b := buf[:min(int64(len(buf)), size-at)]
		if n, _ := f.ReadAt(b, at); n < len(b) {
			return at // it is looked at octet by octet
		}
		for i := 0; i < len(b); i += align {
			k := bytes.Index(b[i:], []byte(magic))
			if k < 0 {
				break
			}
			if i += k; i%align == 0 {
				return at + int64(i)
			}
			i = i / align * align
		}
		at += int64(len(b)) / align * align
		if len(b)%align != 0 {
			return size
		}
	}
	return size
}

// zeroFrom reports whether there are only zeros from at to size.
func zeroFrom(f io.ReaderAt, at, size int64) bool {
	buf, zero := make([]byte, searchChunk), make([]byte, searchChunk)
	for at < size {
		b := buf[:min(searchChunk, size-at)]
		if n, _ := f.ReadAt(b, at); n < len(b) || !bytes.Equal(b, zero[:len(b)]) {
			return false
		}
		at += int64(len(b))
	}
	return true
}

// usualHeader is how much is read of a record at first.
const usualHeader = prefixSize + messageHeaderSize + 64

func readRecord(f io.ReaderAt, at, size int64) (scanned, error) {
	b := make([]byte, usualHeader)
	n, err := f.ReadAt(b, at)
	if n < prefixSize { // perhaps it can be read in part
		n, err = f.ReadAt(b[:prefixSize], at)
	}
	if n < prefixSize {
		if err == io.EOF {
			return scanned{}, errNotRecord
		}
		return scanned{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	p, err := parsePrefix(b)
	if err != nil {
		return scanned{}, err
	}
	if at+p.size() > size {
		return scanned{}, errShort
	}
	var header []byte
	if end := prefixSize + p.header; end <= n {
		header = b[prefixSize:end]
	} else {
		header = make([]byte, p.header)
		if n, err := f.ReadAt(header, at+prefixSize); n < len(header) {
			return scanned{}, fmt.Errorf("%w: %w", errUnreadable, err)
		}
	}
	return parseRecord(p, b[:prefixSize], header, at)
}

// parseRecord reads the header behind a prefix at offset at.
func parseRecord(p prefix, pre, header []byte, at int64) (scanned, error) {
	r := scanned{prefix: p, at: at, bodyAt: at + prefixSize + int64(p.header)}
	err := checkHeader(pre, header)
	if err != nil {
		return scanned{}, err
	}
	switch p.kind {
	case kindMessage:
		_, r.meta, err = parseMessageHeader(header, p.flags)
	case kindTombstone:
		var at time.Time
		_, at, r.ids, err = parseTombstoneHeader(header)
		r.times = []time.Time{at}
	case kindCopied:
		r.ids, r.times, err = parseCopiedHeader(header)
	default:
		err = fmt.Errorf("record kind %d is not known here", p.kind)
	}
	return r, err
}
