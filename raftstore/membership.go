package raftstore

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// memberLoop brings raft's membership in line with the nodes of the configuration
// while this node leads, and gives leadership away if it is the witness or cannot
// apply what the others can.
func (s *Store) memberLoop() {
	for {
		if s.leads() {
			if s.opt.Witness || s.fsm.stuckErr() != nil {
				// Fails while no other voter is in reach; then there is no quorum
				// that a better leader could use either.
				if err := s.with(func(r *raft.Raft) error { return r.LeadershipTransfer().Error() }); err != nil {
					s.opt.Log.Debug("leadership cannot be given away yet", "err", err)
				}
			} else if err := s.lead(); err != nil {
				// What is served may be older than raft's membership: a server that
				// seems to be no member may have joined since.
				s.opt.Log.Debug("does not lead yet", "err", err)
			} else if err := s.reconcileMembers(); err != nil {
				s.opt.Log.Warn("raft membership not changed yet", "err", err)
			}
		}
		select {
		case <-s.Changed():
		case <-time.After(s.opt.Tick):
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *Store) reconcileMembers() error {
	if r := s.recovering(); r != nil {
		return s.beginEpoch(r)
	}
	state := s.State()
	s.reached.keep(func(id string) bool { _, ok := state.NodeByID(id); return ok })
	return s.with(func(r *raft.Raft) error { return s.reconcile(r, state) })
}

// reconcile makes one change, if one is due.
func (s *Store) reconcile(r *raft.Raft, state *State) error {
	timeout := 5 * s.opt.Tick
	servers := map[raft.ServerID]raft.Server{}
	for _, srv := range r.GetConfiguration().Configuration().Servers {
		servers[srv.ID] = srv
	}
	// Those that are gone first: a quorum is counted over all that are listed.
	for id := range servers {
		n, ok := state.NodeByID(string(id))
		switch {
		case ok && !n.Leaving:
			continue
		case string(id) == s.serverID() && len(servers) > 1:
			return r.LeadershipTransfer().Error() // the next leader does it
		}
		s.opt.Log.Info("server removed from raft", "id", id)
		return r.RemoveServer(id, 0, timeout).Error()
	}
	for _, n := range state.SortedNodes() {
		id, addr := raft.ServerID(n.ID), raft.ServerAddress(n.Peer)
		if n.Leaving {
			continue
		}
		srv, ok := servers[id]
		switch {
		case !ok:
			s.opt.Log.Info("node added without a vote", "node", n.Name)
			return r.AddNonvoter(id, addr, 0, timeout).Error()
		case srv.Suffrage == raft.Voter && srv.Address != addr:
			return r.AddVoter(id, addr, 0, timeout).Error()
		case srv.Suffrage != raft.Voter && srv.Address != addr:
			return r.AddNonvoter(id, addr, 0, timeout).Error()
		case srv.Suffrage != raft.Voter && s.caughtUp(n, state):
			// Only now: a voter that is not there would take the quorum away.
			s.opt.Log.Info("node has caught up and votes", "node", n.Name)
			return r.AddVoter(id, addr, 0, timeout).Error()
		}
	}
	return nil
}

// caughtUp asks a node whether it has the same configuration as this one, and has it
// from raft: the file that it joined with says nothing of its log.
func (s *Store) caughtUp(n Node, state *State) bool {
	ctx, cancel := context.WithTimeout(s.ctx, 2*s.opt.Tick)
	defer cancel()
	p, err := s.opt.Peers.Position(ctx, n.Name)
	return err == nil && p.Followed == state.Index && p.Index == state.Index && p.Hash == state.Hash
}
