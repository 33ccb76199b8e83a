// Package durable writes small files that must be whole after any crash.
package durable

import (
	"crypto/rand"
	"path/filepath"

	"msgw/internal/disk"
)

// ReplaceFile is WriteFile on the machine's file system.
func ReplaceFile(path string, b []byte) error { return WriteFile(disk.OS{}, path, b) }

// WriteFile writes a file of mode 0600 so that after any crash either the old or the
// new octets are there, and the new ones once it returned nil. A crash may leave a file
// beside it, whose name begins with a dot.
func WriteFile(fs disk.FS, path string, b []byte) error {
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, "."+filepath.Base(path)+"."+rand.Text())
	f, err := fs.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fs.Rename(temp, path)
	}
	if err != nil {
		_ = fs.Remove(temp) // what went wrong first is what counts
		return err
	}
	return fs.SyncDir(dir)
}

// ReadFile reads all of a file that WriteFile wrote.
func ReadFile(fs disk.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, err
	}
	return b, nil
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error { return disk.OS{}.SyncDir(dir) }
