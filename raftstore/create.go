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
	if err := makeRaftDir(dir); err != nil {
		return err
	}
	n, ok := first.NodeByID(id)
	if !ok {
		return fmt.Errorf("no node has the server id %s", id)
	}
	log := slog.New(slog.DiscardHandler)
	fsm := newMachine(dir, nil, log)
	c := raftConfig(Options{ID: id, Tick: 20 * time.Millisecond, Log: log})
	_, trans := raft.NewInmemTransport(raft.ServerAddress(n.Peer))
	logs, r, err := openRaft(dir, fsm, trans, c)
	if err != nil {
		return err
	}
	err = bootstrap(r, fsm, raft.Server{ID: c.LocalID, Address: raft.ServerAddress(n.Peer)}, first)
	err = errors.Join(err, r.Shutdown().Error(), logs.Close())
	if err != nil {
		return fmt.Errorf("make cluster: %w", err)
	}
	return saveMaterialised(dir, fsm.served)
}

func bootstrap(r *raft.Raft, fsm *machine, self raft.Server, first *State) error {
	if err := r.BootstrapCluster(raft.Configuration{Servers: []raft.Server{self}}).Error(); err != nil {
		return err
	}
	select {
	case <-r.LeaderCh():
	case <-time.After(10 * time.Second):
		return errors.New("raft elected no leader")
	}
	raw, err := json.Marshal(newCommand(first.SortedNodes()[0].Name, initState{first}, time.Now()))
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
	if err := logs.Close(); err != nil {
		return err
	}
	if err := durable.SyncDir(filepath.Join(dir, raftDir)); err != nil {
		return err
	}
	return saveMaterialised(dir, state)
}

func makeRaftDir(dir string) error {
	path := filepath.Join(dir, raftDir)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err // exists: there is a configuration already
	}
	return durable.SyncDir(dir)
}
