package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"msgw/internal/durable"
)

// ErrQuorum says that changes can be made: there is nothing to recover from.
var ErrQuorum = errors.New("there is a quorum: the configuration can be changed")

// recovery is a recovery that is under way, as it is kept in a file until the new epoch
// has begun.
type recovery struct {
	Start StartEpoch `json:"start"`
	// Command is the same at every attempt, so that the epoch begins once.
	Command json.RawMessage `json:"command"`
}

const (
	recoveryName = "recovery.json"
	archivePart  = ".before-epoch-" // raft's directory as it was before that epoch
	keepArchives = 3
)

// loadJSON reads a small file into v; false if there is none.
func loadJSON(path string, v any) (bool, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return true, nil
}

func saveJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.ReplaceFile(path, b)
}

// removeFile removes a file for good; one that is not there is removed.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// Recover breaks the glass: this node goes on alone, in a new epoch, from everything
// that its own log holds. Raft's directory is copied aside first. What is served goes on
// being served meanwhile. It returns ErrQuorum if changes can be made without it, and
// nil once the new epoch has begun; after any other error it may still begin, and a
// restart goes on with it.
//
// Whoever calls it must know that the other voters are gone, or have renounced.
func (s *Store) Recover(ctx context.Context, why string) error {
	s.restarting.Lock()
	defer s.restarting.Unlock()
	r := s.recovering()
	if r == nil {
		if s.Status().Quorum {
			return ErrQuorum
		}
		if err := s.fsm.stuckErr(); err != nil {
			return fmt.Errorf("upgrade this node first: %w", err)
		}
		state := s.State()
		r = &recovery{Start: StartEpoch{Epoch: Epoch{state.Epoch.Number + 1, randomHex(8)}, Parent: state.Epoch, Why: why}}
		raw, err := json.Marshal(newCommand(s.opt.Name, r.Start, time.Now()))
		if err != nil {
			return err
		}
		r.Command = raw
		if err := saveJSON(filepath.Join(s.opt.Dir, recoveryName), r); err != nil {
			return err
		}
		s.setRecovering(r)
		s.opt.Log.Warn("recovery: this node goes on alone in a new epoch", "epoch", r.Start.Epoch, "why", why)
	}
	if err := s.restart(func() error { return s.rewrite(r) }); err != nil {
		return err
	}
	for {
		changed := s.Changed()
		if s.recovering() == nil {
			s.confirm() // whoever asks next is to see the quorum of one
			return nil
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			return fmt.Errorf("%w: the new epoch has not begun yet: %w", ErrUnknown, errClosed)
		case <-ctx.Done():
			return fmt.Errorf("%w: the new epoch has not begun yet: %w", ErrUnknown, ctx.Err())
		}
	}
}

// Epoch is what the members must share to talk to each other. It runs ahead of the
// state's while a recovery is under way: from its beginning on this node does not talk
// to the others of the old one.
func (s *Store) Epoch() Epoch {
	if r := s.recovering(); r != nil {
		return r.Start.Epoch
	}
	return s.State().Epoch
}

func (s *Store) recovering() *recovery {
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	return s.recovery
}

func (s *Store) setRecovering(r *recovery) {
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	s.recovery = r
	s.fsm.notify()
}

// rewrite makes this node the only member of its raft cluster. Raft does not run. It can
// be repeated.
func (s *Store) rewrite(r *recovery) error {
	dir := s.opt.Dir
	if err := archive(dir, fmt.Sprint(archivePart, r.Start.Epoch)); err != nil {
		return fmt.Errorf("copy raft's directory aside: %w", err)
	}
	node, ok := s.State().NodeByID(s.serverID())
	if !ok {
		return fmt.Errorf("no member has the server id %s", s.serverID())
	}
	self := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(node.ID), Address: raft.ServerAddress(node.Peer)}}}
	loaded, err := LoadState(dir)
	if err != nil {
		return err
	}
	if err = checkLog(dir, loaded); err == nil {
		err = rewriteLog(dir, node.ID, self, loaded)
	}
	if errors.Is(err, ErrNoState) {
		// Raft's log lacks what the file has, which is what was served: begin from that.
		if err = s.keepParent(r, loaded); err == nil {
			err = s.beginFrom(loaded, node.ID)
		}
	}
	if err != nil {
		return err
	}
	return s.forgetRenounced()
}

// rewriteLog commits all of the log and replaces the members. It returns ErrNoState if
// the log does not reach as far as the file.
func rewriteLog(dir, id string, self raft.Configuration, loaded *State) error {
	log := slog.New(slog.DiscardHandler)
	c := raftConfig(Options{Tick: time.Second, Log: log}, id)
	logs, snaps, err := openLogs(dir, c.Logger)
	if err != nil {
		return err
	}
	defer logs.Close()
	end, err := logEnd(logs, logs, snaps)
	if err != nil {
		return err
	}
	if end.LastIndex < loaded.Index {
		return fmt.Errorf("%w: raft's log ends at %d, the configuration file at %d", ErrNoState, end.LastIndex, loaded.Index)
	}
	fsm := newMachine(dir, nil, log)
	_, trans := raft.NewInmemTransport(self.Servers[0].Address)
	if err := raft.RecoverCluster(c, fsm, logs, logs, snaps, trans, self); err != nil {
		return errors.Join(fmt.Errorf("rewrite raft's log: %w", err), fsm.stuckErr())
	}
	return logs.Close()
}

// keepParent keeps where the old epoch ended before its log is given up: the new one
// counts from the beginning, and a node that returns is compared with the old.
func (s *Store) keepParent(r *recovery, loaded *State) error {
	if r.Start.Hash != "" {
		return nil // an attempt of before has kept it
	}
	var c Command
	if err := json.Unmarshal(r.Command, &c); err != nil {
		return err
	}
	next := *r
	next.Start.Index, next.Start.Hash = loaded.Index, loaded.Hash
	var err error
	if c.Args, err = json.Marshal(next.Start); err != nil {
		return err
	}
	if next.Command, err = json.Marshal(c); err != nil {
		return err
	}
	if err := saveJSON(filepath.Join(s.opt.Dir, recoveryName), next); err != nil {
		return err
	}
	s.setRecovering(&next)
	return nil
}

// beginFrom gives this node a new raft log that begins with a state.
func (s *Store) beginFrom(state *State, id string) error {
	raftPath := filepath.Join(s.opt.Dir, raftDir)
	if err := errors.Join(os.RemoveAll(raftPath), durable.SyncDir(s.opt.Dir)); err != nil {
		return err
	}
	begun, err := createRaft(s.opt.Dir, id, state)
	if err != nil {
		return err
	}
	if err := saveMaterialised(s.opt.Dir, begun); err != nil {
		return err
	}
	s.fsm.reset(begun)
	return nil
}

// beginEpoch makes the new epoch the first change of a recovered node. It is called
// while this node leads.
func (s *Store) beginEpoch(r *recovery) error {
	out, err := s.apply(r.Command)
	if err != nil {
		return err
	}
	if out.Rejection != nil && s.State().Epoch != r.Start.Epoch {
		return fmt.Errorf("begin epoch %s: %w", r.Start.Epoch, out.Rejection)
	}
	ctx, cancel := context.WithTimeout(s.ctx, 5*s.opt.Tick)
	defer cancel()
	if err := s.awaitSaved(ctx, out.Index); err != nil {
		return err
	}
	if err := removeFile(filepath.Join(s.opt.Dir, recoveryName)); err != nil {
		return err
	}
	s.opt.Log.Warn("a new epoch has begun", "epoch", r.Start.Epoch, "after", r.Start.Parent)
	s.setRecovering(nil)
	return nil
}

// archive copies raft's directory and the configuration aside, once for each suffix. The
// oldest copies go.
func archive(dir, suffix string) error {
	to := filepath.Join(dir, raftDir+suffix)
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	from := filepath.Join(dir, raftDir)
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil // it is what was lost
	}
	temp := to + ".tmp"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := copyTree(from, temp); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(dir, materialisedName), filepath.Join(temp, materialisedName)); err != nil {
		return err
	}
	if err := errors.Join(durable.SyncDir(temp), os.Rename(temp, to), durable.SyncDir(dir)); err != nil {
		return err
	}
	return dropArchives(dir)
}

func dropArchives(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, raftDir+".before-*"))
	if err != nil || len(old) <= keepArchives {
		return err
	}
	slices.SortFunc(old, func(a, b string) int { return modTime(a).Compare(modTime(b)) })
	for _, path := range old[:len(old)-keepArchives] {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

func modTime(path string) time.Time {
	fi, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// copyTree copies a directory of directories and ordinary files, durably.
func copyTree(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			err = copyTree(src, dst)
		} else {
			err = copyFile(src, dst)
		}
		if err != nil {
			return err
		}
	}
	return durable.SyncDir(to)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// LoadArchived reads the configuration that a node had when an epoch began, which it has
// kept aside. It returns fs.ErrNotExist if this node did not begin that epoch, or not
// lately.
func LoadArchived(dir string, e Epoch) (*State, error) {
	return loadMaterialised(filepath.Join(dir, fmt.Sprint(raftDir, archivePart, e)))
}
