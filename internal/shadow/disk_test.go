package shadow

import (
	"sync"
	"syscall"

	"msgw/internal/disk"
)

// faultyDisk is a journal's disk that can be full, fail, or hold flushes up.
type faultyDisk struct {
	disk.OS
	mu     sync.Mutex
	full   bool
	broken bool          // flushes fail
	held   chan struct{} // flushes wait until it is closed; may be nil
}

func (d *faultyDisk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *faultyDisk) noRoom() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return syscall.ENOSPC
	}
	return nil
}

func (d *faultyDisk) Create(name string) (disk.File, error) {
	if err := d.noRoom(); err != nil {
		return nil, err
	}
	f, err := d.OS.Create(name)
	return diskFile{f, d}, err
}

func (d *faultyDisk) Open(name string) (disk.File, error) {
	f, err := d.OS.Open(name)
	return diskFile{f, d}, err
}

func (d *faultyDisk) Free(dir string) (int64, error) {
	if d.noRoom() != nil {
		return 0, nil
	}
	return d.OS.Free(dir)
}

type diskFile struct {
	disk.File
	d *faultyDisk
}

func (f diskFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.d.noRoom(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, at)
}

func (f diskFile) Sync() error {
	f.d.mu.Lock()
	broken, held := f.d.broken, f.d.held
	f.d.mu.Unlock()
	if held != nil {
		<-held
	}
	if broken {
		return syscall.EIO
	}
	return f.File.Sync()
}
