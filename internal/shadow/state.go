package shadow

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"msgw/internal/disk"
	"msgw/internal/durable"
)

// status is the state as it is kept in a file.
type status struct {
	State State     `json:"state"`
	Since time.Time `json:"since"`
	ID    uint64    `json:"id"`
}

const statusFile = "shadow.json"

func loadStatus(f disk.FS, dir string) (status, error) {
	b, err := durable.ReadFile(f, filepath.Join(dir, statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return status{State: Hold}, nil
	}
	var s status
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", statusFile, err)
	}
	return s, nil
}

// judge works out the state; s.mu is held. It is written before anyone acts on it.
func (s *Shipper) judge(now time.Time) {
	next := s.state.State
	switch {
	case s.alone:
		next = Alone
	case s.link != nil && s.trouble == nil && now.Sub(s.heard) < s.times().Silent:
		if next = CatchUp; s.compared && len(s.missing) == 0 && len(s.conflicts) == 0 && s.lost == 0 && len(s.beyond) == 0 {
			next = Sync
		}
	case now.Sub(s.heard) >= s.times().Silent, s.refused && !s.broken.IsZero() && now.Sub(s.broken) >= s.times().Refused,
		s.trouble != nil && now.Sub(s.troubled) >= s.times().Refused:
		next = Degraded
	case s.state.State != Degraded:
		next = Hold
	}
	if next == s.state.State {
		return
	}
	was := s.state
	s.state = status{State: next, Since: now.UTC(), ID: was.ID + 1}
	b, err := json.Marshal(s.state)
	if err == nil {
		err = durable.WriteFile(s.opt.FS, filepath.Join(s.opt.Dir, statusFile), b)
	}
	level := s.log.Info
	if next == Degraded {
		level = s.log.Warn
	}
	level("copies at the other site", "state", string(next), "was", string(was.State), "single", len(s.missing))
	if err != nil {
		s.log.Error("the state of the copies cannot be kept", "err", err)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}
