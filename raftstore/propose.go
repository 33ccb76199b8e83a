package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Propose makes a change at every node. It returns the index of the command once
// it is committed and in this node's file. A *Rejection says that the change does
// not fit the configuration; ErrNoQuorum that nothing was begun; ErrUnknown that
// ctx ended while the outcome was open. No error is both of the last two.
func (s *Store) Propose(ctx context.Context, ch Change) (uint64, error) {
	raw, err := json.Marshal(newCommand(s.opt.Name, ch, time.Now()))
	if err != nil {
		return 0, err
	}
	if r := s.Renounced(); r != nil {
		return 0, fmt.Errorf("%w: this node takes no part until it has rejoined: %s", ErrNoQuorum, r.Why)
	}
	var open error // of an attempt that may have been committed
	for {
		out, err := s.attempt(ctx, raw)
		switch {
		case err == nil && out.Rejection != nil:
			return out.Index, out.Rejection
		case err == nil:
			return out.Index, s.awaitSaved(ctx, out.Index)
		case errors.Is(err, ErrUnknown):
			open = err
		case !errors.Is(err, ErrNoQuorum):
			return 0, err
		}
		// The same request again: it is applied once.
		select {
		case <-time.After(s.opt.Tick / 4):
		case <-ctx.Done():
			if open != nil {
				return 0, open
			}
			return 0, err
		}
	}
}

// attempt gives a command to the leader once.
func (s *Store) attempt(ctx context.Context, raw []byte) (Outcome, error) {
	id := s.leader()
	if id == s.serverID() {
		return s.apply(raw)
	}
	leader, ok := s.State().NodeByID(id)
	if !ok {
		return Outcome{}, fmt.Errorf("%w: no leader is known", ErrNoQuorum)
	}
	b, err := s.opt.Peers.Propose(ctx, leader.Name, raw)
	switch {
	case errors.Is(err, ErrNotSent), errors.Is(err, ErrNoQuorum):
		return Outcome{}, fmt.Errorf("%w: %w", ErrNoQuorum, err)
	case err != nil:
		return Outcome{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	var out Outcome
	if err := json.Unmarshal(b, &out); err != nil {
		return Outcome{}, fmt.Errorf("%w: answer of %s: %w", ErrUnknown, leader.Name, err)
	}
	return out, nil
}

// Receive applies an encoded command that another node was given, and returns its
// encoded Outcome. It returns ErrNoQuorum if this node does not lead.
func (s *Store) Receive(raw []byte) ([]byte, error) {
	// What the leader does not understand must not get into the log.
	if _, _, err := understand(raw); err != nil {
		return json.Marshal(Outcome{Rejection: &Rejection{"invalid", fmt.Sprintf("%s leads and cannot apply this: %v", s.opt.Name, err)}})
	}
	out, err := s.apply(raw)
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// apply commits a command as the leader.
func (s *Store) apply(raw []byte) (Outcome, error) {
	if err := s.fsm.stuckErr(); err != nil {
		return Outcome{}, fmt.Errorf("%w: the leader has stopped at %w", ErrNoQuorum, err)
	}
	var out Outcome
	err := s.with(func(r *raft.Raft) error {
		// Without this an entry could be written by a leader that has just lost its
		// quorum: neither made nor refused.
		if err := r.VerifyLeader().Error(); err != nil {
			return fmt.Errorf("%w: %w", ErrNoQuorum, err)
		}
		f := r.Apply(raw, 5*s.opt.Tick)
		switch err := f.Error(); {
		case err == nil:
			var ok bool
			if out, ok = f.Response().(Outcome); ok {
				return nil
			}
			return fmt.Errorf("%w: the leader has stopped: %v", ErrUnknown, f.Response())
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
			return fmt.Errorf("%w: %w", ErrNoQuorum, err)
		default:
			return fmt.Errorf("%w: %w", ErrUnknown, err)
		}
	})
	return out, err
}

// awaitSaved waits until a command is in this node's file.
func (s *Store) awaitSaved(ctx context.Context, index uint64) error {
	for {
		s.fsm.mu.Lock()
		saved, err, changed := s.fsm.saved, s.fsm.saveErr, s.fsm.changed
		s.fsm.mu.Unlock()
		switch {
		case saved >= index:
			return nil
		case err != nil:
			return fmt.Errorf("the change is made, but not in this node's file: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the change is made, but this node has not applied it yet: %w", ctx.Err())
		}
	}
}

// Confirm makes sure that this node leads with a quorum behind it and returns the
// index of the last command: every change that was reported as made before the call
// is at or before it. It returns ErrNoQuorum otherwise.
func (s *Store) Confirm() (uint64, error) {
	if err := s.lead(); err != nil {
		return 0, err
	}
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	if s.fsm.stuck != nil {
		return 0, fmt.Errorf("%w: the leader has stopped at %w", ErrNoQuorum, s.fsm.stuck)
	}
	return s.fsm.applied.Index, nil
}

// lead makes sure that this node leads with a quorum behind it and has applied
// everything that earlier leaders committed. It returns ErrNoQuorum otherwise.
func (s *Store) lead() error {
	term := s.term()
	if err := s.with(func(r *raft.Raft) error { return r.VerifyLeader().Error() }); err != nil {
		return fmt.Errorf("%w: %w", ErrNoQuorum, err)
	}
	s.mu.Lock()
	begun := s.begun == term
	s.mu.Unlock()
	if !begun {
		// How far its predecessors came, a leader learns only by committing an entry
		// of its own term (Raft, section 8).
		if err := s.with(func(r *raft.Raft) error { return r.Barrier(5 * s.opt.Tick).Error() }); err != nil {
			return fmt.Errorf("%w: %w", ErrNoQuorum, err)
		}
	}
	if s.term() != term {
		return fmt.Errorf("%w: the leader has changed", ErrNoQuorum)
	}
	s.mu.Lock()
	s.begun = term
	s.mu.Unlock()
	return nil
}

// confirmLoop keeps confirmed and current up to date.
func (s *Store) confirmLoop() {
	for {
		s.confirm()
		select {
		case <-time.After(s.opt.Tick):
		case <-s.ctx.Done():
			return
		}
	}
}

// confirm asks once.
func (s *Store) confirm() {
	start := time.Now()
	if index, err := s.confirmOnce(); err == nil {
		s.mu.Lock()
		s.confirmed = start
		if s.State().Index >= index {
			s.current = start
		}
		s.mu.Unlock()
	}
}

func (s *Store) confirmOnce() (uint64, error) {
	id := s.leader()
	if id == s.serverID() {
		return s.Confirm()
	}
	leader, ok := s.State().NodeByID(id)
	if !ok {
		return 0, ErrNoQuorum
	}
	ctx, cancel := context.WithTimeout(s.ctx, 2*s.opt.Tick)
	defer cancel()
	return s.opt.Peers.Confirm(ctx, leader.Name)
}
