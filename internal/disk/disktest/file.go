package disktest

import (
	"io"
	"io/fs"
	"syscall"
)

// maxAllocate is how much room the disk reserves: simulations need not copy more.
const maxAllocate = 1 << 20

// file is an open file. One of a machine that died answers nothing.
type file struct {
	d      *Disk
	n      *node
	name   string
	boot   int
	closed bool // by the program
}

// enter begins an operation; it takes d.mu.
func (f *file) enter(op string) error {
	err := f.d.enter(f.boot, op, f.name)
	if f.closed {
		return failed(op, f.name, fs.ErrClosed)
	}
	return err
}

func (f *file) ReadAt(p []byte, at int64) (int, error) {
	defer f.d.mu.Unlock()
	if err := f.enter("read"); err != nil {
		return 0, err
	}
	if at >= int64(len(f.n.octets)) {
		return 0, io.EOF
	}
	if f.d.bad != nil && f.d.bad(f.name, at, at+int64(len(p))) {
		return 0, failed("read", f.name, syscall.EIO)
	}
	n := copy(p, f.n.octets[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, at int64) (int, error) {
	defer f.d.mu.Unlock()
	err := f.enter("write")
	if f.closed || f.boot != f.d.boots {
		return 0, err
	}
	if err != nil {
		p = p[:f.d.rng.IntN(len(p)+1)] // part of it got there
	}
	f.do(write{at: at, octets: append([]byte(nil), p...)})
	return len(p), err
}

func (f *file) do(w write) {
	f.n.octets = w.done(f.n.octets)
	f.n.writes = append(f.n.writes, w)
}

// done does a write to b.
func (w write) done(b []byte) []byte {
	if w.cut {
		return resize(b, w.at)
	}
	return writeAt(b, w.at, w.octets)
}

func (f *file) Sync() error {
	defer f.d.mu.Unlock()
	if err := f.enter("sync"); err != nil {
		return err
	}
	for _, w := range f.n.writes {
		f.n.flushed = w.done(f.n.flushed)
	}
	f.n.writes = nil
	return nil
}

func (f *file) Truncate(size int64) error {
	defer f.d.mu.Unlock()
	if err := f.enter("truncate"); err != nil {
		return err
	}
	f.do(write{at: size, cut: true})
	return nil
}

func (f *file) Allocate(size int64) error {
	defer f.d.mu.Unlock()
	if err := f.enter("allocate"); err != nil {
		return err
	}
	if size > maxAllocate {
		return failed("allocate", f.name, syscall.EOPNOTSUPP)
	}
	if n := size - int64(len(f.n.octets)); n > 0 {
		f.do(write{at: int64(len(f.n.octets)), octets: make([]byte, n)})
	}
	return nil
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.boot != f.d.boots {
		return 0, failed("size", f.name, syscall.EIO)
	}
	return int64(len(f.n.octets)), nil
}

// Close never fails, and is no operation.
func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.closed = true
	return nil
}
