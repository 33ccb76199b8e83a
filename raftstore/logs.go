package raftstore

import (
	"encoding/json"
	"errors"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// logStore is raft's log, with two things that raft needs and bbolt does not give.
//
// It remembers what a new leader had it drop. Raft drops entries in one write and stores
// the new ones in the next: in between, and after a crash there, the log is shorter than
// others have seen it although nothing was set back.
//
// And it knows the term of the entry at which the newest snapshot ends, though that entry
// itself is gone. A follower that has the snapshot and some entries after it is asked for
// that term when its answer to those entries was lost, and would be sent the same for ever.
type logStore struct {
	*raftboltdb.BoltStore
	snaps raft.SnapshotStore
}

// GetLog reads an entry.
func (o logStore) GetLog(index uint64, l *raft.Log) error {
	err := o.BoltStore.GetLog(index, l)
	if !errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	list, serr := o.snaps.List()
	if serr != nil || len(list) == 0 || list[0].Index != index {
		return err // raft compares it with ==
	}
	*l = raft.Log{Index: index, Term: list[0].Term, Type: raft.LogNoop}
	return nil
}

// droppedKey names, in raft's store, the end of the log before its last entries were
// dropped.
var droppedKey = []byte("msgw-dropped")

// DeleteRange deletes entries, the first and the last included.
func (o logStore) DeleteRange(first, last uint64) error {
	end, err := o.LastIndex()
	if err != nil {
		return err
	}
	if last >= end && end > 0 {
		var l raft.Log
		if err := o.GetLog(end, &l); err != nil {
			return err
		}
		b, err := json.Marshal(LogEnd{LastTerm: l.Term, LastIndex: l.Index})
		if err != nil {
			return err
		}
		if err := o.Set(droppedKey, b); err != nil {
			return err
		}
	}
	return o.BoltStore.DeleteRange(first, last)
}

// dropped returns how far the log was before its last entries were dropped, if ever.
func dropped(stable raft.StableStore) (e LogEnd, err error) {
	b, err := stable.Get(droppedKey)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return e, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	return e, err
}
