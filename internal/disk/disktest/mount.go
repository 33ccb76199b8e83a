package disktest

import (
	"io/fs"
	"maps"
	"slices"
	"syscall"

	"msgw/internal/disk"
)

// mount is the file system of one machine, or with boot -1 of whatever machine runs.
type mount struct {
	d    *Disk
	boot int
}

func sortedNames(ms ...map[string]*node) []string {
	var names []string
	for _, m := range ms {
		names = slices.AppendSeq(names, maps.Keys(m))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (m mount) MkdirAll(dir string) error {
	defer m.d.mu.Unlock()
	if err := m.d.enter(m.boot, "mkdir", dir); err != nil {
		return err
	}
	if n := m.d.find(dir); n != nil {
		if n.isDir() {
			return nil
		}
		return failed("mkdir", dir, syscall.ENOTDIR)
	}
	n := m.d.root
	for _, part := range parts(dir) {
		if n.entries[part] == nil {
			n.entries[part] = newDir()
		}
		if n = n.entries[part]; !n.isDir() {
			return failed("mkdir", dir, syscall.ENOTDIR)
		}
	}
	return nil
}

func (m mount) Create(name string) (disk.File, error) {
	defer m.d.mu.Unlock()
	if err := m.d.enter(m.boot, "create", name); err != nil {
		return nil, err
	}
	dir, base := m.d.parent(name)
	if dir == nil {
		return nil, failed("create", name, fs.ErrNotExist)
	}
	if dir.entries[base] != nil {
		return nil, failed("create", name, fs.ErrExist)
	}
	n := &node{}
	dir.entries[base] = n
	return &file{d: m.d, n: n, name: name, boot: m.d.boots}, nil
}

func (m mount) Open(name string) (disk.File, error) {
	defer m.d.mu.Unlock()
	if err := m.d.enter(m.boot, "open", name); err != nil {
		return nil, err
	}
	n := m.d.find(name)
	if n == nil {
		return nil, failed("open", name, fs.ErrNotExist)
	}
	if n.isDir() {
		return nil, failed("open", name, syscall.EISDIR)
	}
	return &file{d: m.d, n: n, name: name, boot: m.d.boots}, nil
}

func (m mount) Rename(from, to string) error {
	defer m.d.mu.Unlock()
	if err := m.d.enter(m.boot, "rename", to); err != nil {
		return err
	}
	source, name := m.d.parent(from)
	target, base := m.d.parent(to)
	if source == nil || target == nil || source.entries[name] == nil {
		return failed("rename", from, fs.ErrNotExist)
	}
	n := source.entries[name]
	if old := target.entries[base]; n.isDir() || old != nil && old.isDir() {
		return failed("rename", to, syscall.EISDIR) // of files only
	}
	delete(source.entries, name)
	target.entries[base] = n
	return nil
}

func (m mount) Remove(name string) error {
	defer m.d.mu.Unlock()
	if err := m.d.enter(m.boot, "remove", name); err != nil {
		return err
	}
	dir, base := m.d.parent(name)
	if dir == nil || dir.entries[base] == nil {
		return failed("remove", name, fs.ErrNotExist)
	}
	if len(dir.entries[base].entries) > 0 {
		return failed("remove", name, syscall.ENOTEMPTY)
	}
	delete(dir.entries, base)
	return nil
}

// entry is an fs.DirEntry.
type entry struct {
	name string
	dir  bool
}

func (e entry) Name() string               { return e.name }
func (e entry) IsDir() bool                { return e.dir }
func (e entry) Info() (fs.FileInfo, error) { return nil, fs.ErrInvalid }

func (e entry) Type() fs.FileMode {
	if e.dir {
		return fs.ModeDir
	}
	return 0
}

func (m mount) ReadDir(dir string) ([]fs.DirEntry, error) {
	defer m.d.mu.Unlock()
	if err := m.d.enter(m.boot, "readdir", dir); err != nil {
		return nil, err
	}
	n := m.d.find(dir)
	if n == nil || !n.isDir() {
		return nil, failed("readdir", dir, fs.ErrNotExist)
	}
	var es []fs.DirEntry
	for _, name := range sortedNames(n.entries) {
		es = append(es, entry{name, n.entries[name].isDir()})
	}
	return es, nil
}

func (m mount) SyncDir(dir string) error {
	defer m.d.mu.Unlock()
	if err := m.d.enter(m.boot, "syncdir", dir); err != nil {
		return err
	}
	n := m.d.find(dir)
	if n == nil || !n.isDir() {
		return failed("syncdir", dir, fs.ErrNotExist)
	}
	n.saved = maps.Clone(n.entries)
	return nil
}

func (m mount) Free(dir string) (int64, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if m.boot >= 0 && m.boot != m.d.boots {
		return 0, failed("free", dir, syscall.EIO)
	}
	return m.d.free, nil
}
