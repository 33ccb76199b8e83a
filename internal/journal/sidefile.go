package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"strings"
)

// A side file repeats the headers of a finished segment, so that a start reads them in
// one go. It is a hint: it is written without a flush, checked as a whole, and counts
// only if the segment has the size and ends with the end mark that it states. An end
// mark holds the number and the time of its writing, so no other segment has the same.

const (
	sideMagic  = "msi1"
	sideSuffix = ".idx"
	sideHeader = 40
	// sideEntry is what one record takes beside its header.
	sideEntry = 8 + prefixSize
	// maxSide bounds what is read at a time.
	maxSide = 1 << 30
)

var (
	errSide = errors.New("side file does not fit")
	// A side file is written when the end mark was flushed: no crash takes that away.
	errChanged = errors.New("segment is not what it was when it was finished")
)

// sidePath returns where the side file of a segment lies.
func sidePath(segment string) string { return strings.TrimSuffix(segment, segmentSuffix) + sideSuffix }

// appendSide encodes the headers of all records of a finished segment.
func appendSide(b []byte, origin string, number int, size int64, n int, records []byte) ([]byte, error) {
	raw, err := hex.DecodeString(origin)
	if err != nil || len(raw) != 16 {
		return nil, fmt.Errorf("%w: origin %q", errSide, origin)
	}
	start := len(b)
	b = append(b, sideMagic...)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	b = append(b, raw...)
	b = binary.BigEndian.AppendUint32(b, uint32(number))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, records...)
	binary.BigEndian.PutUint32(b[start+4:], crc32.Checksum(b[start+8:], castagnoli))
	return b, nil
}

// parseSide reads a side file. It must be whole, and state origin, number and size.
func parseSide(b []byte, origin string, number int, size int64) ([]scanned, error) {
	if len(b) < sideHeader || string(b[:4]) != sideMagic || binary.BigEndian.Uint32(b[4:]) != crc32.Checksum(b[8:], castagnoli) {
		return nil, fmt.Errorf("%w: %w", errSide, errCRC)
	}
	n := int64(binary.BigEndian.Uint32(b[36:]))
	if hex.EncodeToString(b[16:32]) != origin ||
		binary.BigEndian.Uint32(b[32:]) != uint32(number) || n*sideEntry > int64(len(b)) {
		return nil, fmt.Errorf("%w: it is that of another segment", errSide)
	}
	if binary.BigEndian.Uint64(b[8:]) != uint64(size) {
		return nil, fmt.Errorf("%w: %w: %d octets", errSide, errChanged, size)
	}
	records := make([]scanned, 0, n)
	end := int64(0)
	for b = b[sideHeader:]; len(b) > 0; {
		if len(b) < sideEntry {
			return nil, errSide
		}
		at := int64(binary.BigEndian.Uint64(b))
		p, err := parsePrefix(b[8:])
		if err != nil || at != end || p.size() > size-at || len(b) < sideEntry+p.header {
			return nil, fmt.Errorf("%w: at offset %d: %w", errSide, at, err)
		}
		r, err := parseRecord(p, b[8:sideEntry], b[sideEntry:sideEntry+p.header], at)
		if err != nil {
			return nil, fmt.Errorf("%w: at offset %d: %w", errSide, at, err)
		}
		records, b, end = append(records, r), b[sideEntry+p.header:], at+p.size()
	}
	if int64(len(records)) != n || n == 0 || end != size || !records[n-1].endMark() {
		return nil, fmt.Errorf("%w: it does not end with an end mark", errSide)
	}
	return records, nil
}

// readSide returns the records of a segment of size octets from its side file.
func (j *Journal) readSide(seg *segment, size int64) ([]scanned, error) {
	f, err := j.fs.Open(sidePath(seg.path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil || n < sideHeader+sideEntry+tombstoneSize || n > maxSide {
		return nil, fmt.Errorf("%w: %d octets: %w", errSide, n, err)
	}
	b := make([]byte, n)
	if got, err := f.ReadAt(b, 0); got < len(b) {
		return nil, fmt.Errorf("%w: %w", errSide, err)
	}
	records, err := parseSide(b, seg.origin, seg.number, size)
	if err != nil {
		return nil, err
	}
	const mark = prefixSize + tombstoneSize
	var end [mark]byte
	if got, err := seg.file.ReadAt(end[:], records[len(records)-1].at); got < mark {
		return nil, fmt.Errorf("%w: %w", errSide, err)
	}
	if !bytes.Equal(end[:], b[len(b)-mark:]) {
		return nil, fmt.Errorf("%w: %w: another end mark", errSide, errChanged)
	}
	return records, nil
}

// writeSide writes the side file of a finished segment.
func (j *Journal) writeSide(seg *segment) error {
	records, bad, _, err := scan(seg.file, seg.size)
	if err != nil {
		return err
	}
	if len(bad) > 0 || len(records) == 0 || !records[len(records)-1].endMark() {
		return fmt.Errorf("%w: the segment is not whole", errSide)
	}
	b := make([]byte, 0, len(records)*(sideEntry+messageHeaderSize+32))
	for _, r := range records {
		b = binary.BigEndian.AppendUint64(b, uint64(r.at))
		at := len(b)
		b = append(b, make([]byte, prefixSize+r.header)...)
		if n, err := seg.file.ReadAt(b[at:], r.at); n < len(b)-at {
			return fmt.Errorf("read record: %w", err)
		}
	}
	if b, err = appendSide(nil, seg.origin, seg.number, seg.size, len(records), b); err != nil {
		return err
	}
	if len(b) > maxSide {
		return nil // it would not be read
	}
	path := sidePath(seg.path)
	if err := j.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError("remove side file", err)
	}
	f, err := j.fs.Create(path)
	if err != nil {
		return diskError("begin side file", err)
	}
	_, err = f.WriteAt(b, 0)
	return errors.Join(diskError("write side file", err), f.Close())
}

// writeSides writes the side files that are missing.
func (j *Journal) writeSides() {
	for {
		j.mu.Lock()
		var seg *segment
		for _, s := range j.segments {
			if s != j.current && s.finished && !s.damaged && !s.side {
				seg = s
				seg.refs++
				seg.side = true // tried once
				break
			}
		}
		j.mu.Unlock()
		if seg == nil {
			return
		}
		if err := j.writeSide(seg); err != nil {
			j.log.Warn("cannot write a side file; the next start takes longer", "file", sidePath(seg.path), "err", err)
		}
		j.mu.Lock()
		seg.refs--
		gone := seg.gone
		j.closeIfUnused(seg)
		j.mu.Unlock()
		if gone {
			j.removeSide(seg)
		}
	}
}

// removeSide removes the side file of a segment that goes.
func (j *Journal) removeSide(seg *segment) {
	if err := j.fs.Remove(sidePath(seg.path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.log.Warn("cannot remove a side file; the next start tries again", "file", sidePath(seg.path), "err", err)
	}
}
