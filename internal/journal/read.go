package journal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"msgw/internal/disk"
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
// a whole before Open returns. One in a file of its own is checked against its SHA-256
// as it is read: whoever reads it from its start to its end, in whatever steps, gets
// ErrDamaged with the last octets if any of them was changed. Errors: ErrNotFound,
// ErrDamaged, ErrClosed; others pass, as too many open files do.
func (j *Journal) Open(id ID) (*Reader, error) {
	s, err := j.open(id)
	if err != nil {
		return nil, err
	}
	if s.file == nil {
		defer s.close()
		b, err := j.readInline(s)
		if err != nil {
			return nil, err
		}
		return inMemory(b, s.meta), nil
	}
	return &Reader{&checked{j: j, s: s, sum: sha256.New()}, s.meta, func() error { s.close(); return nil }}, nil
}

// inlines keeps the memory of bodies that were read from segments for the next ones.
var inlines sync.Pool

// takeInline returns memory for size octets of a body.
func takeInline(size int64) []byte {
	if b, ok := inlines.Get().(*[]byte); ok && int64(cap(*b)) >= size {
		return (*b)[:size]
	}
	const unit = 64 << 10
	return make([]byte, size, (size+unit-1)/unit*unit)
}

// inMemory makes a Reader of the octets of a body. Its Close gives their memory away.
func inMemory(b []byte, m Meta) *Reader {
	r := &Reader{ReaderAt: bytes.NewReader(b), Meta: m}
	var once sync.Once
	r.close = func() error {
		once.Do(func() {
			r.ReaderAt = closed{}
			inlines.Put(&b)
		})
		return nil
	}
	return r
}

// closed is what a Reader reads after its end.
type closed struct{}

func (closed) ReadAt([]byte, int64) (int, error) { return 0, fs.ErrClosed }

// source is the place of one message's octets, held open.
type source struct {
	j       *Journal
	entry   *entry
	meta    Meta
	seg     *segment
	start   int64 // of the record in seg
	bodyCRC uint32
	path    string // of the file with the octets
	octets  io.ReaderAt
	at      int64     // of the first octet there
	file    disk.File // of its own, or nil
}

func (s *source) close() {
	if s.file != nil {
		s.file.Close()
	}
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	s.seg.refs--
	s.j.closeIfUnused(s.seg)
}

// open finds the octets of a message. Those in a file of their own have the length that
// they should have.
func (j *Journal) open(id ID) (*source, error) {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil, ErrClosed
	}
	e := j.entry(id)
	if e == nil {
		j.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", id, ErrNotFound)
	}
	start, _ := e.record()
	s := &source{j: j, entry: e, meta: e.meta(), seg: e.seg, start: start, bodyCRC: e.bodyCRC, path: e.seg.path, octets: e.seg.file, at: e.bodyAt()}
	inFile := e.flags&bodyInFile != 0
	if inFile {
		s.path, s.at = j.bodyPath(e), 0
	}
	e.seg.refs++
	j.mu.Unlock()
	if !inFile {
		return s, nil
	}
	f, err := j.fs.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) && j.elsewhere(e, s.path) {
		s.close()
		return j.open(id) // deleted or replaced meanwhile
	}
	if err == nil {
		s.file, s.octets = f, f
		var n int64
		if n, err = f.Size(); err == nil && n != s.meta.Sealed {
			err = fmt.Errorf("%d octets, expected %d", n, s.meta.Sealed)
		}
	}
	if err != nil {
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) {
			err = fmt.Errorf("%s: %w", id, err) // this machine's trouble, and it passes
		} else {
			err = j.harmed(s, err)
		}
		s.close()
		return nil, err
	}
	return s, nil
}

// elsewhere reports whether the body of e is no longer expected at path.
func (j *Journal) elsewhere(e *entry, path string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entry(e.id) != e || e.flags&bodyInFile == 0 || j.bodyPath(e) != path
}

// checked reads a body file and sums up what is read in sequence.
type checked struct {
	j *Journal
	s *source

	mu   sync.Mutex
	sum  hash.Hash
	next int64 // octets that are summed up
	bad  error
}

// ReadAt reads octets at an offset.
func (c *checked) ReadAt(p []byte, at int64) (int, error) {
	n, err := c.s.file.ReadAt(p, at)
	c.mu.Lock()
	defer c.mu.Unlock()
	if end := at + int64(n); at <= c.next && c.next < end {
		c.sum.Write(p[c.next-at : n])
		if c.next = end; end == c.s.meta.Sealed && [32]byte(c.sum.Sum(nil)) != c.s.meta.SHA256 {
			c.bad = c.j.harmed(c.s, errSHA)
		}
	}
	if c.bad != nil {
		return 0, c.bad
	}
	return n, err
}
