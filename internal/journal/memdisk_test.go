package journal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// memDisk is a disk with a volatile write cache. crash drops what was not
// flushed, or keeps parts of it, as power cuts do.
type memDisk struct {
	mu    sync.Mutex
	rng   *rand.Rand
	dirs  map[string]map[string]*node // directory -> entries, as programs see them
	saved map[string]map[string]*node // as they are on stable storage
	epoch int                         // raised by crash: older handles are dead
	free  int64
	fail  func(op, name string) error // may inject an error; nil: none
	// badSector says that the octets of a file cannot be read; nil: all can.
	badSector func(name string, from, to int64) bool
}

type node struct {
	data    []byte
	flushed []byte
	writes  []write // since the last flush
}

type write struct {
	at   int64
	data []byte
	cut  bool // a truncation to at
}

func newMemDisk(rng *rand.Rand) *memDisk {
	return &memDisk{rng: rng, free: 1 << 40, dirs: map[string]map[string]*node{".": {}}, saved: map[string]map[string]*node{".": {}}}
}

func (d *memDisk) inject(op, name string) error {
	if d.fail != nil {
		if err := d.fail(op, name); err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
	}
	return nil
}

func (d *memDisk) MkdirAll(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inject("mkdir", dir); err != nil {
		return err
	}
	for p := dir; p != "."; p = filepath.Dir(p) {
		if d.dirs[p] == nil {
			d.dirs[p] = map[string]*node{}
			d.dirs[filepath.Dir(p)] = orMake(d.dirs[filepath.Dir(p)])
			d.dirs[filepath.Dir(p)][filepath.Base(p)] = nil // a directory
		}
	}
	return nil
}

func orMake(m map[string]*node) map[string]*node {
	if m == nil {
		m = map[string]*node{}
	}
	return m
}

func (d *memDisk) Create(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inject("create", name); err != nil {
		return nil, err
	}
	dir := d.dirs[filepath.Dir(name)]
	if dir == nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrNotExist}
	}
	if _, ok := dir[filepath.Base(name)]; ok {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	n := &node{}
	dir[filepath.Base(name)] = n
	return &memFile{d: d, n: n, name: name, epoch: d.epoch}, nil
}

func (d *memDisk) Open(name string) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inject("open", name); err != nil {
		return nil, err
	}
	n := d.dirs[filepath.Dir(name)][filepath.Base(name)]
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memFile{d: d, n: n, name: name, epoch: d.epoch}, nil
}

func (d *memDisk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inject("rename", to); err != nil {
		return err
	}
	n := d.dirs[filepath.Dir(from)][filepath.Base(from)]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	delete(d.dirs[filepath.Dir(from)], filepath.Base(from))
	d.dirs[filepath.Dir(to)][filepath.Base(to)] = n
	return nil
}

func (d *memDisk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inject("remove", name); err != nil {
		return err
	}
	dir := d.dirs[filepath.Dir(name)]
	if _, ok := dir[filepath.Base(name)]; !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if len(d.dirs[name]) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	delete(d.dirs, name)
	delete(dir, filepath.Base(name))
	return nil
}

type dirEntry struct {
	name string
	dir  bool
}

func (e dirEntry) Name() string               { return e.name }
func (e dirEntry) IsDir() bool                { return e.dir }
func (e dirEntry) Type() fs.FileMode          { return 0 }
func (e dirEntry) Info() (fs.FileInfo, error) { return nil, fs.ErrInvalid }

func (d *memDisk) ReadDir(dir string) ([]fs.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.dirs[dir]
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: dir, Err: fs.ErrNotExist}
	}
	var es []fs.DirEntry
	for name, n := range m {
		es = append(es, dirEntry{name, n == nil})
	}
	slices.SortFunc(es, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return es, nil
}

func (d *memDisk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inject("syncdir", dir); err != nil {
		return err
	}
	m := map[string]*node{}
	for k, v := range d.dirs[dir] {
		m[k] = v
	}
	d.saved[dir] = m
	return nil
}

func (d *memDisk) Free(string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.free, nil
}

// crash ends the machine: what was flushed stays, of the rest any part may.
func (d *memDisk) crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.epoch++
	d.fail = nil
	after := map[string]map[string]*node{}
	var walk func(dir string)
	walk = func(dir string) {
		after[dir] = map[string]*node{}
		for name, n := range d.saved[dir] {
			// A removal that was not flushed may have reached the disk.
			if _, ok := d.dirs[dir][name]; ok || d.rng.IntN(2) == 0 {
				after[dir][name] = n
			}
		}
		// Names that were not flushed may have reached the disk all the same.
		for name, n := range d.dirs[dir] {
			if _, ok := after[dir][name]; !ok && d.rng.IntN(2) == 0 {
				after[dir][name] = n
			}
		}
		for name, n := range after[dir] {
			if n == nil {
				walk(filepath.Join(dir, name))
			}
		}
	}
	walk(".")
	seen := map[*node]bool{}
	for _, dir := range after {
		for _, n := range dir {
			if n == nil || seen[n] {
				continue
			}
			seen[n] = true
			data := bytes.Clone(n.flushed)
			for _, w := range n.writes {
				a, b := 0, 0 // what lies between them is lost
				switch d.rng.IntN(4) {
				case 0:
					continue // all of it
				case 1:
					a, b = 0, d.rng.IntN(len(w.data)+1)
				case 2:
					a, b = d.rng.IntN(len(w.data)+1), len(w.data)
				case 3:
					if d.rng.IntN(2) == 0 {
						a = d.rng.IntN(len(w.data) + 1)
						b = a + d.rng.IntN(len(w.data)-a+1)
					}
				}
				if w.cut {
					data = data[:min(int64(len(data)), w.at)]
					continue
				}
				if a > 0 {
					data = writeAt(data, w.at, w.data[:a])
				}
				if b < len(w.data) {
					data = writeAt(data, w.at+int64(b), w.data[b:])
				}
			}
			n.data, n.flushed, n.writes = data, bytes.Clone(data), nil
		}
	}
	d.dirs = after
	d.saved = map[string]map[string]*node{}
	for dir, m := range after {
		d.saved[dir] = map[string]*node{}
		for k, v := range m {
			d.saved[dir][k] = v
		}
	}
}

func writeAt(b []byte, at int64, p []byte) []byte {
	if need := int(at) + len(p); need > len(b) {
		b = append(b, make([]byte, need-len(b))...)
	}
	copy(b[at:], p)
	return b
}

type memFile struct {
	d     *memDisk
	n     *node
	name  string
	epoch int

	closed bool // by the program
}

func (f *memFile) dead() error {
	if f.closed {
		return &fs.PathError{Op: "use", Path: f.name, Err: fs.ErrClosed}
	}
	if f.epoch != f.d.epoch {
		return &fs.PathError{Op: "use", Path: f.name, Err: syscall.EIO}
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if at >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	if f.d.badSector != nil && f.d.badSector(f.name, at, at+int64(len(p))) {
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: syscall.EIO}
	}
	if f.closed {
		return 0, f.dead()
	}
	n := copy(p, f.n.data[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, at int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.dead(); err != nil {
		return 0, err
	}
	err := f.d.inject("write", f.name)
	if err != nil {
		p = p[:f.d.rng.IntN(len(p)+1)] // part of it got there
	}
	f.n.data = writeAt(f.n.data, at, p)
	f.n.writes = append(f.n.writes, write{at: at, data: bytes.Clone(p)})
	return len(p), err
}

func (f *memFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.dead(); err != nil {
		return err
	}
	if err := f.d.inject("sync", f.name); err != nil {
		return err
	}
	f.n.flushed, f.n.writes = bytes.Clone(f.n.data), nil
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.dead(); err != nil {
		return err
	}
	if err := f.d.inject("truncate", f.name); err != nil {
		return err
	}
	f.n.data = f.n.data[:size]
	f.n.writes = append(f.n.writes, write{at: size, cut: true})
	return nil
}

func (f *memFile) Allocate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.dead(); err != nil {
		return err
	}
	if err := f.d.inject("allocate", f.name); err != nil {
		return err
	}
	if size > 1<<20 {
		return syscall.EOPNOTSUPP // tests need not copy so much
	}
	if n := size - int64(len(f.n.data)); n > 0 {
		f.n.writes = append(f.n.writes, write{at: int64(len(f.n.data)), data: make([]byte, n)})
		f.n.data = append(f.n.data, make([]byte, n)...)
	}
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.n.data)), nil
}

func (f *memFile) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.closed = true
	return nil
}

// text makes a sealed message that differs for each id.
func text(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func metaOf(id ID, mailbox string) Meta {
	return Meta{ID: id, Mailbox: mailbox, Key: "0123456789abcdef", Received: time.Now().UTC(), Octets: 3}
}

func store(j *Journal, id ID, mailbox string, sealed []byte) error {
	b := j.NewBody(id)
	defer b.Discard()
	for p := sealed; len(p) > 0; {
		n := min(len(p), 1000)
		if _, err := b.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return j.Commit(Message{metaOf(id, mailbox), b})
}

// commitAll writes the octets of ms and commits them together.
func commitAll(j *Journal, ms []Message, sealed map[ID][]byte) error {
	for _, m := range ms {
		defer m.Body.Discard()
		for p := sealed[m.Meta.ID]; len(p) > 0; {
			n := min(len(p), 1000)
			if _, err := m.Body.Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return j.Commit(ms...)
}

func load(j *Journal, id ID) ([]byte, error) {
	r, err := j.Open(id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, r.Meta.Sealed)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read %d of %d: %w", n, len(b), err)
	}
	if sha256.Sum256(b) != r.Meta.SHA256 {
		return nil, errors.New("other SHA-256 than its meta says")
	}
	return b, nil
}

// slogTo logs warnings to b.
func slogTo(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
