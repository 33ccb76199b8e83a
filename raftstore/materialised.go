package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"msgw/internal/durable"
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
	return durable.ReplaceFile(filepath.Join(dir, materialisedName), append(b, '\n'))
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
