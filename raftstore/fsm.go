package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// machine is the raft state machine. It also decides what the node serves: the
// newest of what the file held and what raft has applied.
type machine struct {
	dir string
	log *slog.Logger

	mu       sync.Mutex
	applied  *State // by raft in this process
	served   *State // what State returns
	stuck    error  // a command that this version does not understand: nothing after it is applied
	saved    uint64 // index of the state in the file
	saveErr  error  // of the last attempt to write it
	retry    time.Duration
	hashes   map[uint64]string // of recent indexes
	diverged error
	changed  chan struct{} // closed and replaced at each change of the above
}

// keepHashes is how far back peers can compare.
const keepHashes = 4096

func newMachine(dir string, loaded *State, log *slog.Logger) *machine {
	m := &machine{dir: dir, log: log, applied: emptyState(), served: loaded,
		hashes: map[uint64]string{}, changed: make(chan struct{})}
	if loaded != nil {
		m.saved = loaded.Index
		m.hashes[loaded.Index] = loaded.Hash
	}
	return m
}

func emptyState() *State {
	return &State{Format: stateFormat, Nodes: map[string]Node{}, Mailboxes: map[string]Mailbox{}, Invites: map[string]Invite{}}
}

// begin prepares for a run of raft, which gives everything that it has once more.
func (m *machine) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied, m.stuck = emptyState(), nil
}

// reset makes this node serve another configuration, which is in its file already. Its
// indexes need not continue those of before.
func (m *machine) reset(s *State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied, m.served, m.stuck, m.diverged = emptyState(), s, nil, nil
	m.saved, m.saveErr, m.hashes = s.Index, nil, map[uint64]string{s.Index: s.Hash}
	m.notify()
}

// Apply is called by raft for every committed command.
func (m *machine) Apply(l *raft.Log) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stuck != nil {
		return m.stuck
	}
	next, out, err := m.applied.apply(l.Data, l.Index, l.Term)
	if err != nil {
		m.setStuck(fmt.Errorf("command %d: %w", l.Index, err))
		return m.stuck
	}
	m.advance(next)
	return out
}

// setStuck stops applying: what is served stays, and raft's log keeps the rest for a
// version that understands it. m.mu is held.
func (m *machine) setStuck(err error) {
	m.stuck = err
	m.log.Error("the configuration is not followed any further; upgrade this node", "err", err)
	m.notify()
}

// stuckErr returns why nothing is applied any more, or nil.
func (m *machine) stuckErr() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stuck
}

// Restore is called by raft to begin from a snapshot.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s, err := decodeState(b)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("raft snapshot: %w", err)
		if m.stuck == nil {
			m.setStuck(err)
		}
		return err
	}
	m.stuck = nil
	m.advance(s)
	return nil
}

// advance takes over what raft has come to; m.mu is held. A restarted node replays
// what it served before: until raft has caught up, the file's state stays.
func (m *machine) advance(s *State) {
	m.applied = s
	if known, ok := m.hashes[s.Index]; ok && known != s.Hash && m.diverged == nil {
		m.diverged = fmt.Errorf("replaying command %d gave another configuration than this node served before", s.Index)
		m.log.Error("configuration diverged", "err", m.diverged)
	}
	m.hashes[s.Index] = s.Hash
	for i := range m.hashes {
		if i+keepHashes < s.Index {
			delete(m.hashes, i)
		}
	}
	if m.served == nil || s.Index >= m.served.Index {
		m.served = s
	}
	m.notify()
}

func (m *machine) notify() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// noteDivergence records that a peer has another hash at an index.
func (m *machine) noteDivergence(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.diverged == nil {
		m.diverged = err
		m.log.Error("configuration diverged", "err", err)
		m.notify()
	}
}

// save writes the served state to the file whenever it is newer. It ends with stop.
func (m *machine) save(stop <-chan struct{}) {
	for {
		m.mu.Lock()
		s, saved, changed := m.served, m.saved, m.changed
		m.mu.Unlock()
		if s == nil || s.Index <= saved {
			select {
			case <-changed:
			case <-stop:
				return
			}
			continue
		}
		err := saveMaterialised(m.dir, s)
		m.noteSaved(s.Index, err)
		if err == nil {
			continue
		}
		// What is served stays right, and the log of raft has it. The next attempt
		// writes all octets again, to another file: a failed flush is not retried.
		select {
		case <-time.After(m.retry):
		case <-stop:
			return
		}
	}
}

func (m *machine) noteSaved(index uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		if m.saveErr != nil {
			m.log.Info("configuration file is written again")
		}
		m.saved, m.saveErr = index, nil
	case m.saveErr == nil:
		m.log.Error("configuration file cannot be written; it is tried again", "err", err)
		fallthrough
	default:
		m.saveErr = fmt.Errorf("write configuration file: %w", err)
	}
	m.notify()
}

// Snapshot is called by raft to shorten its log.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stuck != nil {
		return nil, m.stuck // raft would drop the commands that are not in it
	}
	if m.applied.Cluster == "" {
		return nil, errors.New("nothing applied yet")
	}
	return snapshot{m.applied}, nil
}

type snapshot struct{ s *State }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s.s); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (snapshot) Release() {}
