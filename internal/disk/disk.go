// Package disk is what the rooms that keep things write to: files, their names, and
// the flushes of both. Those who test what a crash leaves put another disk in its
// place; see disktest.
package disk

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync returns once the file's octets and length are on stable storage.
	Sync() error
	Truncate(size int64) error
	// Allocate reserves room up to size and makes the file so long; what is added reads
	// as zeros. Not every disk can.
	Allocate(size int64) error
	Size() (int64, error)
}

// FS is a file system. Names are paths. Errors are those of package os: fs.ErrNotExist,
// fs.ErrExist and the system's numbers can be told apart.
type FS interface {
	MkdirAll(dir string) error        // of mode 0700
	Create(name string) (File, error) // of mode 0600; fails if name exists
	Open(name string) (File, error)   // for reading and writing
	Rename(from, to string) error     // takes the place of a file named to
	Remove(name string) error         // of a file or an empty directory
	ReadDir(dir string) ([]fs.DirEntry, error)
	// SyncDir returns once the directory's entries are on stable storage.
	SyncDir(dir string) error
	// Free returns the octets that may still be written below dir.
	Free(dir string) (int64, error)
}

// OS is the file system of the machine.
type OS struct{}

type osFile struct{ *os.File }

func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f osFile) Allocate(size int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (OS) MkdirAll(dir string) error                 { return os.MkdirAll(dir, 0o700) }
func (OS) Create(name string) (File, error)          { return open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL) }
func (OS) Open(name string) (File, error)            { return open(name, os.O_RDWR) }
func (OS) Rename(from, to string) error              { return os.Rename(from, to) }
func (OS) Remove(name string) error                  { return os.Remove(name) }
func (OS) ReadDir(dir string) ([]fs.DirEntry, error) { return os.ReadDir(dir) }

func (OS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (OS) Free(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}
