package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"msgw/internal/durable"
)

// drain is this node's own wish to get no new mail. It is kept here and told in
// the node's report, never replicated: a survivor can always take it back.
type drain struct {
	path string

	mu      sync.Mutex
	drained bool
}

func openDrain(dir string) (*drain, error) {
	d := &drain{path: filepath.Join(dir, drainFile)}
	b, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &d.drained); err != nil {
		return nil, operatorError(fmt.Errorf("%s: %w", d.path, err), "it says true or false: whether this node is drained; write it, or remove the file")
	}
	return d, nil
}

func (d *drain) get() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.drained
}

func (d *drain) set(drained bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := json.Marshal(drained)
	if err == nil {
		err = durable.ReplaceFile(d.path, b)
	}
	if err == nil {
		d.drained = drained
	}
	return err
}
