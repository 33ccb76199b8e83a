package certs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/caddyserver/certmagic"

	"msgw/internal/durable"
)

// storage is where certmagic keeps accounts and certificates: files of mode 0600 that are
// whole and there after any crash. certmagic's own syncs no directory, so that a name may
// be gone. It is locked in memory: one process has the state directory at a time.
type storage struct {
	certmagic.FileStorage

	mu    sync.Mutex
	locks map[string]chan struct{} // closed when it is free again
}

func newStorage(dir string) *storage {
	return &storage{FileStorage: certmagic.FileStorage{Path: dir}, locks: map[string]chan struct{}{}}
}

// Store saves a value; see certmagic.Storage.
func (s *storage) Store(_ context.Context, key string, value []byte) error {
	path := s.Filename(key)
	if err := makeDirs(s.Path, filepath.Dir(path)); err != nil {
		return err
	}
	return durable.ReplaceFile(path, value)
}

// makeDirs makes root and what is missing below it down to dir, so that a crash leaves it.
func makeDirs(root, dir string) error {
	if dir != filepath.Dir(root) && strings.HasPrefix(dir, root) {
		if err := makeDirs(root, filepath.Dir(dir)); err != nil {
			return err
		}
	}
	switch err := os.Mkdir(dir, 0o700); {
	case os.IsExist(err):
		return nil
	case err != nil:
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
}

// Delete removes a value, or all below a key.
func (s *storage) Delete(_ context.Context, key string) error {
	path := s.Filename(key)
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Dir(path)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// Lock waits until a name is free, and takes it.
func (s *storage) Lock(ctx context.Context, name string) error {
	for {
		s.mu.Lock()
		held, taken := s.locks[name]
		if !taken {
			s.locks[name] = make(chan struct{})
		}
		s.mu.Unlock()
		if !taken {
			return nil
		}
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unlock sets a name free.
func (s *storage) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held, taken := s.locks[name]
	if !taken {
		return fmt.Errorf("lock %s is not held", name)
	}
	delete(s.locks, name)
	close(held)
	return nil
}

// TryLock takes a name if it is free. It stands in for the one of FileStorage, which makes
// files.
func (s *storage) TryLock(_ context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.locks[name]; taken {
		return false, nil
	}
	s.locks[name] = make(chan struct{})
	return true, nil
}
