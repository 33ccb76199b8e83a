package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
)

// Reader reads one sealed message. It stays valid when the message is deleted
// meanwhile.
type Reader struct {
	io.ReaderAt
	Meta  Meta
	close func() error
}

// Close ends the reading.
func (r *Reader) Close() error { return r.close() }

// Open opens the sealed message of id. A message kept in a segment is checked as
// a whole before Open returns; one in a file of its own is authenticated chunk by
// chunk when it is unsealed. Errors: ErrNotFound, ErrDamaged, ErrClosed.
func (j *Journal) Open(id ID) (*Reader, error) {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil, ErrClosed
	}
	e := j.entries[id]
	if e == nil {
		j.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
	}
	meta, seg := e.Meta, e.seg
	seg.refs++
	j.mu.Unlock()
	defer func() {
		j.mu.Lock()
		seg.refs--
		j.closeIfUnused(seg)
		j.mu.Unlock()
	}()

	if meta.Flags&bodyInFile != 0 {
		f, err := j.fs.Open(bodyPath(seg, id))
		if errors.Is(err, fs.ErrNotExist) && !j.holds(e) {
			return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", id, ErrDamaged, err)
		}
		if n, err := f.Size(); err != nil || n != meta.Sealed {
			f.Close()
			return nil, fmt.Errorf("%s: %w: its file has %d octets, expected %d (%v)", id, ErrDamaged, n, meta.Sealed, err)
		}
		return &Reader{f, meta, f.Close}, nil
	}
	b := make([]byte, meta.Sealed)
	if _, err := seg.file.ReadAt(b, e.at); err != nil && err != io.EOF {
		return nil, fmt.Errorf("%s: %w: %w", id, ErrDamaged, err)
	}
	if crc32.Checksum(b, castagnoli) != e.bodyCRC {
		return nil, fmt.Errorf("%s: %w: %s at offset %d: %w", id, ErrDamaged, seg.path, e.at, errCRC)
	}
	return &Reader{bytes.NewReader(b), meta, func() error { return nil }}, nil
}

// holds reports whether e was not deleted meanwhile.
func (j *Journal) holds(e *entry) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries[e.ID] == e
}
