package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The materialised configuration is the state as one file. A node boots and serves
// from it alone: raft's own log says nothing of what was committed until there is
// a quorum again.
const materialisedName = "config.json"

// loadMaterialised reads the file in dir; fs.ErrNotExist if there is none.
func loadMaterialised(dir string) (*State, error) {
	path := filepath.Join(dir, materialisedName)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// saveMaterialised replaces the file in dir; when it returns nil the new one is on
// stable storage.
func saveMaterialised(dir string, s *State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return ReplaceFile(filepath.Join(dir, materialisedName), append(b, '\n'))
}

// ReplaceFile writes a file of mode 0600 so that after any crash either the old or
// the new octets are there, and the new ones once it returned nil.
func ReplaceFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// removeStale removes temporary files that a crash left.
func removeStale(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, "."+materialisedName+".*"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
