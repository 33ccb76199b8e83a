package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"msgw/internal/durable"
	"msgw/internal/node"
)

// writeWhole makes the file path of what write writes, with mode 0600. It is there once
// it is whole and on stable storage. A file that exists is never replaced.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	exists := &node.OperatorError{Err: fmt.Errorf("%s exists already", path), Hint: "name a file that does not exist yet"}
	if _, err := os.Lstat(path); err == nil {
		return exists
	}
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, "."+filepath.Base(path)+"."+rand.Text())
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &node.OperatorError{Err: fmt.Errorf("output: %w", err), Hint: "name a file in an existing directory"}
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = renameNew(temp, path); errors.Is(err, fs.ErrExist) {
		return exists
	} else if err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

// renameNew renames a file and fails with fs.ErrExist if to is there.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// Not every file system can, and those are the ones of removable disks.
		if _, err := os.Lstat(to); err == nil {
			return fs.ErrExist
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}
