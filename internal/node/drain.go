package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"msgw/internal/durable"
)

// drain is this node's own wish to get no new mail. It is kept here and told in
// the node's report, never replicated: a survivor can always take it back. It may
// have an end, by this machine's clock; nothing has to happen for it to end then.
type drain struct {
	path string

	mu    sync.Mutex
	state drained
}

// drained is what the file holds; the zero value is no drain.
type drained struct {
	Drained bool      `json:"drained"`
	Since   time.Time `json:"since,omitzero"`
	Until   time.Time `json:"until,omitzero"` // zero: until it is taken back
}

// now returns the drain that is in force at a time; the zero value if there is none.
func (s drained) now(at time.Time) drained {
	if !s.Drained || !s.Until.IsZero() && !at.Before(s.Until) {
		return drained{}
	}
	return s
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
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] != '{' {
		err = json.Unmarshal(b, &d.state.Drained) // of a version without an end
	} else {
		err = json.Unmarshal(b, &d.state)
	}
	if err != nil {
		return nil, operatorError(fmt.Errorf("%s: %w", d.path, err), "it says whether this node is drained, true or false; write it, or remove the file")
	}
	if d.state.Drained && d.state.Since.IsZero() {
		d.state.Since = time.Now().UTC() // not known: senders get their time again
	}
	return d, nil
}

// get returns the drain that is in force.
func (d *drain) get() drained {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.now(time.Now())
}

// set begins a drain, or gives the one in force another end; life 0: no end.
func (d *drain) set(life time.Duration) (drained, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now().UTC()
	next := drained{Drained: true, Since: now}
	if old := d.state.now(now); old.Drained {
		next.Since = old.Since
	}
	if life > 0 {
		next.Until = now.Add(life)
	}
	return next, d.write(next)
}

// end takes the drain back.
func (d *drain) end() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.write(drained{})
}

// expire forgets a drain whose time is over, so that a clock that is set back does not
// bring it back, and reports whether it did.
func (d *drain) expire() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.state.Drained || d.state.now(time.Now()).Drained {
		return false, nil
	}
	err := d.write(drained{})
	return err == nil, err
}

// write keeps a state; d.mu is held.
func (d *drain) write(s drained) error {
	b, err := json.Marshal(s)
	if err == nil {
		err = durable.ReplaceFile(d.path, b)
	}
	if err == nil {
		d.state = s
	}
	return err
}
