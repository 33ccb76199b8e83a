package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"msgw/internal/durable"
)

// Renunciation says that a node does not vote any more under a server id.
type Renunciation struct {
	ID  string    `json:"id"`  // that votes no more
	New string    `json:"new"` // that the node will have when it has rejoined
	Why string    `json:"why"`
	At  time.Time `json:"at"`
}

const renouncedName = "renounced.json"

// Renounce ends this node's part in raft for good under its server id: it does not vote,
// acknowledges nothing and changes nothing until it has rejoined. What it serves, it
// serves on. It is on stable storage when Renounce returns nil. Each call gives out another
// id to rejoin under: the last one may have been used, before the disk was set back.
func (s *Store) Renounce(why string) (Renunciation, error) {
	s.restarting.Lock()
	defer s.restarting.Unlock()
	if s.recovering() != nil {
		return Renunciation{}, errors.New("a recovery is under way")
	}
	r := &Renunciation{ID: s.serverID(), Why: why, At: time.Now().UTC()}
	already := s.Renounced()
	if already != nil {
		*r = *already
	}
	r.New = randomHex(8)
	if err := saveJSON(filepath.Join(s.opt.Dir, renouncedName), r); err != nil {
		return Renunciation{}, err
	}
	s.setRenounced(r)
	if already != nil {
		return *r, nil
	}
	s.opt.Log.Warn("this node votes no more until it has rejoined", "why", why)
	return *r, s.restart(nil)
}

// Renounced returns why this node takes no part in raft, or nil.
func (s *Store) Renounced() *Renunciation {
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	return s.renounced
}

func (s *Store) setRenounced(r *Renunciation) {
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	s.renounced = r
	s.fsm.notify()
}

// forgetRenounced lets this node take part again.
func (s *Store) forgetRenounced() error {
	if err := removeFile(filepath.Join(s.opt.Dir, renouncedName)); err != nil {
		return err
	}
	s.setRenounced(nil)
	return nil
}

// Rejoin is what a node needs to begin again as a member of a newer lineage.
type Rejoin struct {
	ID    string `json:"id"` // its new server id
	State *State `json:"state"`
}

// Rejoin begins again with an empty raft log under a new server id, from the state of
// the lineage that has taken this node in. Raft's old directory is kept aside. The node
// must have renounced. It is not repeated by itself after a crash: until it returns nil
// the node has still renounced, and Rejoin can be called again.
func (s *Store) Rejoin(r Rejoin) error {
	s.restarting.Lock()
	defer s.restarting.Unlock()
	if s.Renounced() == nil {
		return errors.New("a node renounces before it rejoins")
	}
	if _, ok := r.State.NodeByID(r.ID); !ok {
		return fmt.Errorf("the configuration has no member with the server id %s", r.ID)
	}
	return s.restart(func() error {
		dir := s.opt.Dir
		if err := archive(dir, ".before-"+r.ID); err != nil {
			return fmt.Errorf("copy raft's directory aside: %w", err)
		}
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, raftDir)), durable.SyncDir(dir)); err != nil {
			return err
		}
		if err := Adopt(dir, r.State); err != nil {
			return err
		}
		s.reached.keep(func(string) bool { return false }) // it was of another lineage
		s.fsm.reset(r.State)
		s.setServerID(r.ID)
		return s.forgetRenounced()
	})
}
