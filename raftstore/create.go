package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"msgw/internal/durable"
)

// Create makes the configuration of a new cluster in dir, with the one node whose
// server id is id, and makes it durable. first needs neither index nor hash.
func Create(dir, id string, first *State) error {
	first.Format = stateFormat
	made, err := createRaft(dir, id, first)
	if err != nil {
		return err
	}
	return saveMaterialised(dir, made)
}

// createRaft makes a raft log with one voter that begins with a state, and returns the
// state as it is in the log.
func createRaft(dir, id string, first *State) (*State, error) {
	if err := makeRaftDir(dir); err != nil {
		return nil, err
	}
	n, ok := first.NodeByID(id)
	if !ok {
		return nil, fmt.Errorf("no node has the server id %s", id)
	}
	log := slog.New(slog.DiscardHandler)
	fsm := newMachine(dir, nil, log)
	c := raftConfig(Options{Tick: 20 * time.Millisecond, Log: log}, id)
	logs, snaps, err := openLogs(dir, c.Logger)
	if err != nil {
		return nil, err
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(n.Peer))
	r, err := raft.NewRaft(c, fsm, logs, logs, snaps, trans)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start raft: %w", err), logs.Close())
	}
	err = bootstrap(r, raft.Server{ID: c.LocalID, Address: raft.ServerAddress(n.Peer)}, n.Name, first)
	err = errors.Join(err, r.Shutdown().Error(), logs.Close())
	if err != nil {
		return nil, fmt.Errorf("make cluster: %w", err)
	}
	return fsm.served, nil
}

func bootstrap(r *raft.Raft, self raft.Server, name string, first *State) error {
	if err := r.BootstrapCluster(raft.Configuration{Servers: []raft.Server{self}}).Error(); err != nil {
		return err
	}
	select {
	case <-r.LeaderCh():
	case <-time.After(10 * time.Second):
		return errors.New("raft elected no leader")
	}
	raw, err := json.Marshal(newCommand(name, initState{first}, time.Now()))
	if err != nil {
		return err
	}
	f := r.Apply(raw, 10*time.Second)
	if err := f.Error(); err != nil {
		return err
	}
	if rej := f.Response().(Outcome).Rejection; rej != nil {
		return rej
	}
	return nil
}

// Adopt makes the configuration of a node that joins a cluster: a copy of the
// cluster's state to boot from, and an empty raft log that the leader fills.
func Adopt(dir string, state *State) error {
	if err := makeRaftDir(dir); err != nil {
		return err
	}
	logs, err := raftboltdb.NewBoltStore(filepath.Join(dir, raftDir, raftFile))
	if err != nil {
		return err
	}
	if err := errors.Join(logs.SetUint64(adoptedKey, state.Index), logs.Close()); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Join(dir, raftDir)); err != nil {
		return err
	}
	return saveMaterialised(dir, state)
}

// adoptedKey names, in raft's store, the index of the state that a node joined with.
var adoptedKey = []byte("msgw-adopted")

// checkLog makes sure that raft's log in dir is whole as far as can be known: that it
// begins where its snapshot ends, and reaches as far as the configuration file, in
// which nothing is that was not in the log before. It returns ErrNoState otherwise.
func checkLog(dir string, loaded *State) error {
	dir = filepath.Join(dir, raftDir)
	path := filepath.Join(dir, raftFile)
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%w: %w", ErrNoState, err)
	}
	logs, err := raftboltdb.NewBoltStore(path)
	if err != nil {
		return fmt.Errorf("open raft log: %w", err)
	}
	defer logs.Close()
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, raftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("list raft snapshots: %w", err)
	}
	first, err := logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("read raft log: %w", err)
	}
	last, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read raft log: %w", err)
	}
	adopted, err := logs.GetUint64(adoptedKey)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return fmt.Errorf("read raft log: %w", err)
	}
	var snapshot uint64
	if len(list) > 0 {
		snapshot = list[0].Index // the newest comes first
	}
	switch have := max(last, snapshot); {
	case first > snapshot+1:
		return fmt.Errorf("%w: raft's log begins at %d and its snapshot ends at %d", ErrNoState, first, snapshot)
	case have < loaded.Index && loaded.Index > adopted:
		return fmt.Errorf("%w: raft's log ends at %d, before command %d of the configuration file", ErrNoState, have, loaded.Index)
	}
	return nil
}

func makeRaftDir(dir string) error {
	path := filepath.Join(dir, raftDir)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err // exists: there is a configuration already
	}
	return durable.SyncDir(dir)
}
