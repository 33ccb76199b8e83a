package raftstore

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// instance is one run of raft. A store has one after the other: a recovery and a rejoin
// end one and start the next, while what is served goes on being served.
type instance struct {
	id    string
	raft  *raft.Raft
	logs  *raftboltdb.BoltStore
	snaps raft.SnapshotStore
}

// errNotRunning says that this node takes no part in raft now.
var errNotRunning = fmt.Errorf("%w: this node takes no part in changes now", ErrNoQuorum)

// errClosed says that the store is being closed.
var errClosed = errors.New("the store is closed")

// openLogs opens raft's files.
func openLogs(dir string, log hclog.Logger) (*raftboltdb.BoltStore, raft.SnapshotStore, error) {
	dir = filepath.Join(dir, raftDir)
	logs, err := raftboltdb.NewBoltStore(filepath.Join(dir, raftFile))
	if err != nil {
		return nil, nil, fmt.Errorf("open raft log: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, log)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open raft snapshots: %w", err), logs.Close())
	}
	return logs, snaps, nil
}

// restart ends the run of raft, lets prepare change its files, and starts the next run,
// unless this node has renounced. If prepare fails raft does not run.
func (s *Store) restart(prepare func() error) (err error) {
	s.using.Lock()
	defer s.using.Unlock()
	if s.ctx.Err() != nil {
		return errClosed // nobody would end the next run
	}
	defer func() {
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
	}()
	if err := s.stopRaft(); err != nil {
		s.opt.Log.Error("raft did not end well", "err", err)
	}
	if prepare != nil {
		if err := prepare(); err != nil {
			return err
		}
	}
	if s.Renounced() != nil {
		return nil
	}
	return s.startRaft()
}

// startRaft begins a run; s.using is held.
func (s *Store) startRaft() error {
	id := s.serverID()
	c := raftConfig(s.opt, id)
	logs, snaps, err := openLogs(s.opt.Dir, c.Logger)
	if err != nil {
		return err
	}
	s.fsm.begin()
	conns := s.streams.begin(id, func() (LogEnd, error) { return logEnd(logs, logs, snaps) })
	// One request at a time to each: changes are rare, and what is acknowledged is noted
	// before raft counts on it.
	trans := observe(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: conns, MaxPool: 3, MaxRPCsInFlight: 1,
		Timeout: 10 * s.opt.Tick, Logger: c.Logger, ServerAddressProvider: addresses{s.fsm}}), s.reached.note)
	r, err := raft.NewRaft(c, s.fsm, logStore{logs, snaps}, logs, snaps, trans)
	if err != nil {
		return errors.Join(fmt.Errorf("start raft: %w", err), trans.Close(), logs.Close())
	}
	s.run.Store(&instance{id, r, logs, snaps})
	return nil
}

// stopRaft ends the run, if there is one; s.using is held.
func (s *Store) stopRaft() error {
	x := s.run.Swap(nil)
	s.mu.Lock()
	if s.begun = 0; !s.confirmed.IsZero() {
		s.confirmed = s.confirmed.Add(-5 * s.opt.Tick) // a new run finds out anew
	}
	s.mu.Unlock()
	if x == nil {
		return nil
	}
	return errors.Join(x.raft.Shutdown().Error(), x.logs.Close())
}

// with calls f with the run of raft, which does not end meanwhile. It returns an error
// wrapping ErrNoQuorum if there is none.
func (s *Store) with(f func(r *raft.Raft) error) error {
	s.using.RLock()
	defer s.using.RUnlock()
	x := s.run.Load()
	if x == nil {
		return errNotRunning
	}
	return f(x.raft)
}

// leader returns the server id of the leader, or nothing.
func (s *Store) leader() string {
	x := s.run.Load()
	if x == nil {
		return ""
	}
	_, id := x.raft.LeaderWithID()
	return string(id)
}

func (s *Store) leads() bool {
	x := s.run.Load()
	return x != nil && x.raft.State() == raft.Leader
}

func (s *Store) term() uint64 {
	x := s.run.Load()
	if x == nil {
		return 0
	}
	return x.raft.CurrentTerm()
}

// serverID is this node's id in raft; a rejoin changes it.
func (s *Store) serverID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

func (s *Store) setServerID(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id = id
}

// noteSetBack is told that this node's log is shorter than another one has seen it.
func (s *Store) noteSetBack(err error) {
	select {
	case s.setBack <- err:
	default: // it is known
	}
}

// setBackLoop takes a node that was set back out of raft: its vote could undo what it
// once acknowledged.
func (s *Store) setBackLoop() {
	for {
		select {
		case why := <-s.setBack:
			if s.Renounced() != nil {
				continue
			}
			if _, err := s.Renounce(why.Error()); err != nil {
				s.opt.Log.Error("this node was set back and cannot say so on its disk", "err", err)
			}
		case <-s.ctx.Done():
			return
		}
	}
}

// noteRefused remembers that another server was set back.
func (s *Store) noteRefused(id string, now, was LogEnd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.refused[id]; !known {
		s.opt.Log.Warn("a server was set back to an earlier state and is refused until it has rejoined", "id", id, "now", now, "was", was)
	}
	s.refused[id] = "at " + now.String() + ", was at " + was.String()
}
