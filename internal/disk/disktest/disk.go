// Package disktest is a disk with a volatile write cache, in memory. A power cut drops
// what was not flushed, or keeps parts of it. It can be full, fail at any operation,
// have sectors that cannot be read, and go back to a snapshot, as that of a virtual
// machine does. Several goroutines may use it, inside testing/synctest too: nothing in
// it waits, but for what Before is given.
package disktest

import (
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"syscall"

	"msgw/internal/disk"
)

// Disk is a disk.FS itself: that of whatever machine runs now. Names are relative, as
// "journal/x"; a leading slash counts for nothing.
type Disk struct {
	mount

	mu     sync.Mutex
	rng    *rand.Rand
	root   *node
	boots  int // handles and mounts of earlier ones are dead
	free   int64
	fail   func(op, name string) error
	before func(op, name string)
	bad    func(name string, from, to int64) bool
}

// node is a file or a directory.
type node struct {
	// Of a directory: the entries as programs see them, and as they are on stable storage.
	entries, saved map[string]*node
	// Of a file: the octets, those on stable storage, and what was done since the flush.
	octets, flushed []byte
	writes          []write
}

// write is one that was not flushed yet.
type write struct {
	at     int64
	octets []byte
	cut    bool // the file's size became at
}

func newDir() *node { return &node{entries: map[string]*node{}, saved: map[string]*node{}} }

func (n *node) isDir() bool { return n.entries != nil }

// New returns an empty disk. What a power cut leaves is drawn from rng, which is the
// disk's from now on.
func New(rng *rand.Rand) *Disk {
	d := &Disk{rng: rng, root: newDir(), free: 1 << 40}
	d.mount = mount{d, -1}
	return d
}

// Mount returns the disk as a machine sees it that is running now: after the next Crash,
// Restart or Revert every operation through it fails, so that what a dead process does cannot
// reach the files of the next one.
func (d *Disk) Mount() disk.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return mount{d, d.boots}
}

// Fail sets what is asked before every operation; an error that it returns is the
// operation's. It is called by one goroutine at a time and must not use the disk. A
// write that fails may have been done in part. nil: nothing fails. Operations are
// mkdir, create, open, rename (named by the new name), remove, readdir, syncdir, write,
// sync, truncate and allocate.
func (d *Disk) Fail(f func(op, name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = f
}

// Before sets what is called before every operation, and before read. It may wait, so
// that the operation hangs, and may use the disk.
func (d *Disk) Before(f func(op, name string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = f
}

// Unreadable sets which octets of a file cannot be read. nil: all can.
func (d *Disk) Unreadable(f func(name string, from, to int64) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad = f
}

// SetFree sets what Free returns. It changes nothing else.
func (d *Disk) SetFree(octets int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = octets
}

// Crash cuts the power: what was flushed stays, of the rest any part may. Nothing fails
// any more; see Fail.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.boot(d.root.cut(d.rng, map[*node]*node{}))
}

// Restart ends what runs and keeps all that was written: the program dies, the machine
// does not. Nothing fails any more; what was not flushed still is not.
func (d *Disk) Restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.boot(d.root)
}

// Snapshot is the contents of a disk at some time.
type Snapshot struct{ root *node }

// Snapshot returns what a power cut now could leave, and changes nothing.
func (d *Disk) Snapshot() *Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Snapshot{d.root.cut(d.rng, map[*node]*node{})}
}

// Revert puts the disk back to a snapshot, which may be used again. What runs on it
// dies, as in Crash.
func (d *Disk) Revert(s *Snapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.boot(s.root.cut(d.rng, map[*node]*node{}))
}

func (d *Disk) boot(root *node) { d.root, d.fail, d.boots = root, nil, d.boots+1 }

// cut returns what a power cut leaves of n, all of it on stable storage. Files may have
// several names: a renaming that was not flushed.
func (n *node) cut(rng *rand.Rand, done map[*node]*node) *node {
	if x := done[n]; x != nil {
		return x
	}
	x := &node{}
	done[n] = x
	if n.isDir() {
		x.entries, x.saved = map[string]*node{}, map[string]*node{}
		for _, name := range sortedNames(n.entries, n.saved) {
			child := n.saved[name]
			// A change of a name that was not flushed may have reached the disk.
			if now := n.entries[name]; now != child && rng.IntN(2) == 0 {
				child = now
			}
			if child != nil {
				child = child.cut(rng, done)
				x.entries[name], x.saved[name] = child, child
			}
		}
		return x
	}
	b := append([]byte(nil), n.flushed...)
	for _, w := range n.writes {
		b = w.torn(b, rng)
	}
	x.octets, x.flushed = b, append([]byte(nil), b...)
	return x
}

// torn does to b what is left of a write that was not flushed.
func (w write) torn(b []byte, rng *rand.Rand) []byte {
	from, to := 0, 0 // what is lost
	switch n := len(w.octets); rng.IntN(4) {
	case 0:
		return b // all of it
	case 1:
		to = rng.IntN(n + 1)
	case 2:
		from, to = rng.IntN(n+1), n
	case 3:
		if rng.IntN(2) == 0 {
			from = rng.IntN(n + 1)
			to = from + rng.IntN(n-from+1)
		}
	}
	if w.cut {
		return resize(b, w.at)
	}
	if from > 0 {
		b = writeAt(b, w.at, w.octets[:from])
	}
	if to < len(w.octets) {
		return writeAt(b, w.at+int64(to), w.octets[to:])
	}
	// The file's new length may be there without the octets.
	if end := w.at + int64(len(w.octets)); end > int64(len(b)) && rng.IntN(3) == 0 {
		b = resize(b, end)
	}
	return b
}

func resize(b []byte, size int64) []byte {
	if n := size - int64(len(b)); n > 0 {
		return append(b, make([]byte, n)...)
	}
	return b[:size]
}

func writeAt(b []byte, at int64, p []byte) []byte {
	if end := at + int64(len(p)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[at:], p)
	return b
}

// Names returns the names of all files as programs see them, in order.
func (d *Disk) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	var walk func(n *node, at string)
	walk = func(n *node, at string) {
		for _, name := range sortedNames(n.entries) {
			if child := n.entries[name]; child.isDir() {
				walk(child, path.Join(at, name))
			} else {
				names = append(names, path.Join(at, name))
			}
		}
	}
	walk(d.root, "")
	return names
}

// Change replaces the octets of a file, on stable storage too, without anybody noticing.
// f is given its own copy. false means that there is no such file.
func (d *Disk) Change(name string, f func(octets []byte) []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.find(name)
	if n == nil || n.isDir() {
		return false
	}
	n.octets = f(append([]byte(nil), n.octets...))
	n.flushed, n.writes = append([]byte(nil), n.octets...), nil
	return true
}

func parts(name string) []string {
	if name = path.Clean("/" + name)[1:]; name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

// find returns the node of name, or nil; d.mu is held.
func (d *Disk) find(name string) *node {
	n := d.root
	for _, part := range parts(name) {
		if n = n.entries[part]; n == nil {
			return nil
		}
	}
	return n
}

// parent returns the directory that name is in, and its base; d.mu is held.
func (d *Disk) parent(name string) (*node, string) {
	dir, base := path.Split(path.Clean("/" + name))
	n := d.find(dir)
	if n == nil || !n.isDir() || base == "" {
		return nil, base
	}
	return n, base
}

func failed(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// enter begins an operation of a machine: it takes d.mu, and says what is wrong.
func (d *Disk) enter(boot int, op, name string) error {
	d.mu.Lock()
	if before := d.before; before != nil {
		d.mu.Unlock()
		before(op, name)
		d.mu.Lock()
	}
	if boot >= 0 && boot != d.boots {
		return failed(op, name, syscall.EIO)
	}
	if d.fail != nil && op != "read" {
		if err := d.fail(op, name); err != nil {
			return failed(op, name, err)
		}
	}
	return nil
}
