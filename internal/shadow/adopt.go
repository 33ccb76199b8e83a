package shadow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"msgw/internal/disk"
	"msgw/internal/durable"
	"msgw/internal/journal"
)

// HolderOptions of a Holder.
type HolderOptions struct {
	Held *journal.Journal // the copies, opened with KeepGraves
	Dir  string           // for what must survive a restart
	FS   disk.FS          // that Dir is on; nil: the machine's
	// Silence is how long the owner must have been silent before its messages are
	// adopted; default 15 min. Confirmed is the same if Confirm says that nobody else
	// hears of it either; default 2 min.
	Silence, Confirmed func() time.Duration // nil: the defaults
	Confirm            func() bool          // may be nil
	Log                *slog.Logger
}

// The defaults of HolderOptions.Silence and HolderOptions.Confirmed.
const (
	AdoptAfter     = 15 * time.Minute
	AdoptConfirmed = 2 * time.Minute
)

// Holder keeps the other site's messages. While the other site is gone for long, it
// adopts them: they are listed here.
type Holder struct {
	opt  HolderOptions
	log  *slog.Logger
	held *journal.Journal

	dropped dropped // what the owner deleted lately

	mu       sync.Mutex
	heard    time.Time // from the owner, on any connection, or the start
	met      bool      // it was heard by this process
	adoption adoption
	storing  map[journal.ID]chan struct{} // copies being stored; closed when that has ended
	coming   map[journal.ID]*receiver     // large copies coming in
}

// adoption is what a Holder writes to its file.
type adoption struct {
	Adopted bool      `json:"adopted"`
	Since   time.Time `json:"since"`
	Why     string    `json:"why"`
}

const adoptionFile = "adoption.json"

// OpenHolder reads whether the other site's messages are adopted.
func OpenHolder(opt HolderOptions) (*Holder, error) {
	if opt.FS == nil {
		opt.FS = disk.OS{}
	}
	if opt.Silence == nil {
		opt.Silence = func() time.Duration { return AdoptAfter }
	}
	if opt.Confirmed == nil {
		opt.Confirmed = func() time.Duration { return AdoptConfirmed }
	}
	h := &Holder{opt: opt, log: opt.Log, held: opt.Held, heard: time.Now(), storing: map[journal.ID]chan struct{}{}, coming: map[journal.ID]*receiver{}}
	b, err := durable.ReadFile(opt.FS, filepath.Join(opt.Dir, adoptionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &h.adoption)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", adoptionFile, err)
	}
	return h, nil
}

// Run adopts when it is time, until ctx ends.
func (h *Holder) Run(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		if why, heard := h.due(time.Now()); why != "" {
			if err := h.setAdopted(true, why, heard); err != nil {
				h.log.Error("the other site's messages cannot be adopted", "err", err)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// due says why the other site's messages are to be adopted now, or nothing, and when
// the owner was last heard.
func (h *Holder) due(now time.Time) (why string, heard time.Time) {
	h.mu.Lock()
	heard, adopted := h.heard, h.adoption.Adopted
	h.mu.Unlock()
	silent, silence, confirmed := now.Sub(heard), h.opt.Silence(), h.opt.Confirmed()
	switch {
	case adopted || silent < min(silence, confirmed) || len(h.held.Waiting()) == 0:
		return "", heard
	case silent >= silence:
		return fmt.Sprintf("the other site was silent for %v", silence), heard
	case silent >= confirmed && h.opt.Confirm != nil && h.opt.Confirm():
		return fmt.Sprintf("the other site was silent for %v, and others do not hear of it either", confirmed), heard
	}
	return "", heard
}

// Adopt lists the other site's messages here from now on, until it is back. The worst
// that follows if it lives is that the archive gets them twice.
func (h *Holder) Adopt() error { return h.setAdopted(true, "an operator said so", time.Time{}) }

// Adopted returns whether the other site's messages are listed here, and why.
func (h *Holder) Adopted() (adopted bool, since time.Time, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.adoption.Adopted, h.adoption.Since, h.adoption.Why
}

// Heard returns when the owner was last heard by this process; zero if never.
func (h *Holder) Heard() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.met {
		return time.Time{}
	}
	return h.heard
}

// List returns what waits in a mailbox of the other site's messages, if they are
// adopted.
func (h *Holder) List(mailbox string) []journal.Meta {
	if adopted, _, _ := h.Adopted(); !adopted {
		return nil
	}
	return h.held.List(mailbox)
}

// setAdopted begins or ends an adoption. One that is begun for the owner's silence is
// not if the owner was heard since the given time.
func (h *Holder) setAdopted(adopted bool, why string, heard time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.adoption.Adopted == adopted || adopted && !heard.IsZero() && !h.heard.Equal(heard) {
		return nil
	}
	next := adoption{adopted, time.Now().UTC(), why}
	b, err := json.Marshal(next)
	if err == nil {
		err = durable.WriteFile(h.opt.FS, filepath.Join(h.opt.Dir, adoptionFile), b)
	}
	if err != nil {
		return fmt.Errorf("adoption: %w", err)
	}
	h.adoption = next
	if !adopted {
		h.heard = time.Now()
	}
	h.log.Warn("adoption of the other site's messages", "adopted", adopted, "why", why)
	return nil
}

// hear notes that the owner lives.
func (h *Holder) hear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard, h.met = time.Now(), true
}
