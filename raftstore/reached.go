package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"msgw/internal/durable"
)

// LogEnd is how far a server's raft log and its promises go. In a server that keeps its
// disk it never goes back.
type LogEnd struct {
	Term      uint64 `json:"term"`       // the newest that it has taken part in
	LastTerm  uint64 `json:"last_term"`  // of the last entry of its log
	LastIndex uint64 `json:"last_index"` // of that entry
}

// behind returns whether a server that was once at o has been set back to e. A log may
// become shorter when another leader overwrites what was not committed, but its last
// term never falls (Raft, section 5.4.1).
func (e LogEnd) behind(o LogEnd) bool {
	return e.Term < o.Term || e.LastTerm < o.LastTerm || e.LastTerm == o.LastTerm && e.LastIndex < o.LastIndex
}

// merge returns the furthest of two ends.
func (e LogEnd) merge(o LogEnd) LogEnd {
	out := e
	if o.LastTerm > e.LastTerm || o.LastTerm == e.LastTerm && o.LastIndex > e.LastIndex {
		out.LastTerm, out.LastIndex = o.LastTerm, o.LastIndex
	}
	out.Term = max(e.Term, o.Term, out.LastTerm)
	return out
}

func (e LogEnd) String() string { return fmt.Sprintf("index %d, term %d", e.LastIndex, e.Term) }

// logEnd reads it from the disk.
func logEnd(logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore) (LogEnd, error) {
	last, err := logs.LastIndex()
	if err != nil {
		return LogEnd{}, err
	}
	var e LogEnd
	if last > 0 {
		var l raft.Log
		if err := logs.GetLog(last, &l); err != nil {
			return e, err
		}
		e.LastIndex, e.LastTerm = last, l.Term
	}
	was, err := dropped(stable)
	if err != nil {
		return e, err
	}
	e = e.merge(was)
	list, err := snaps.List()
	if err != nil {
		return e, err
	}
	if len(list) > 0 {
		e = e.merge(LogEnd{LastTerm: list[0].Term, LastIndex: list[0].Index})
	}
	term, err := stable.GetUint64([]byte("CurrentTerm")) // raft's own name for it
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return e, err
	}
	e.Term = max(e.Term, term)
	return e, nil
}

// reached remembers how far every other server ever was, by what it acknowledged and
// said: a server that shows less has lost what it promised, and must not vote.
type reached struct {
	path string

	mu  sync.Mutex
	m   map[string]LogEnd // by server id
	err error             // of the last attempt to write the file
}

const reachedName = "reached.json"

// loadReached reads what was remembered. A file that does not parse is no reason to serve
// nothing: it is begun anew.
func loadReached(dir string, log *slog.Logger) (*reached, error) {
	r := &reached{path: filepath.Join(dir, reachedName), m: map[string]LogEnd{}}
	b, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &r.m); err != nil {
		log.Error("how far the other servers were is forgotten; one that was set back may not be noticed", "file", r.path, "err", err)
		r.m = map[string]LogEnd{}
	}
	return r, nil
}

// note takes down that a server was at e. It is on stable storage when note returns,
// unless the disk fails, which Status tells.
func (r *reached) note(id string, e LogEnd) {
	if id == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.m[id]
	further := old.merge(e)
	if further == old {
		return
	}
	r.m[id] = further
	r.write()
}

// write replaces the file; r.mu is held.
func (r *reached) write() {
	b, err := json.Marshal(r.m)
	if err == nil {
		err = durable.ReplaceFile(r.path, b)
	}
	if r.err = err; err != nil {
		r.err = fmt.Errorf("write %s: %w", reachedName, err)
	}
}

// all returns what is known of every server at this moment.
func (r *reached) all() map[string]LogEnd {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.m)
}

// keep forgets every server that is not wanted any more.
func (r *reached) keep(wanted func(id string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.m)
	maps.DeleteFunc(r.m, func(id string, _ LogEnd) bool { return !wanted(id) })
	if len(r.m) < before {
		r.write()
	}
}

func (r *reached) trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// observed is raft's transport that notes what the other servers show of their logs.
type observed struct {
	*raft.NetworkTransport
	note func(id string, e LogEnd)
	rpcs chan raft.RPC
	done chan struct{}
	wg   sync.WaitGroup
	once sync.Once
}

func observe(t *raft.NetworkTransport, note func(id string, e LogEnd)) *observed {
	o := &observed{NetworkTransport: t, note: note, rpcs: make(chan raft.RPC), done: make(chan struct{})}
	o.wg.Go(o.incoming)
	return o
}

// Consumer gives raft the requests of others.
func (o *observed) Consumer() <-chan raft.RPC { return o.rpcs }

func (o *observed) incoming() {
	for {
		select {
		case rpc := <-o.NetworkTransport.Consumer():
			o.request(rpc.Command)
			select {
			case o.rpcs <- rpc:
			case <-o.done:
				return
			}
		case <-o.done:
			return
		}
	}
}

// request notes what a request shows of the one who sent it. A leader's entries are in
// its own log before it sends them, a candidate's term on its disk before it asks.
func (o *observed) request(command any) {
	switch r := command.(type) {
	case *raft.AppendEntriesRequest:
		e := LogEnd{Term: r.Term}
		if n := len(r.Entries); n > 0 {
			e.LastTerm, e.LastIndex = r.Entries[n-1].Term, r.Entries[n-1].Index
		}
		o.note(string(r.ID), e)
	case *raft.RequestVoteRequest:
		o.note(string(r.ID), LogEnd{Term: r.Term, LastTerm: r.LastLogTerm, LastIndex: r.LastLogIndex})
	}
}

// AppendEntries notes what the other server acknowledges, before raft counts on it.
func (o *observed) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := o.NetworkTransport.AppendEntries(id, target, args, resp)
	if err == nil {
		e := LogEnd{Term: resp.Term}
		if n := len(args.Entries); resp.Success && n > 0 {
			e.LastTerm, e.LastIndex = args.Entries[n-1].Term, args.Entries[n-1].Index
		}
		o.note(string(id), e)
	}
	return err
}

// RequestVote notes the term in which the other server has voted.
func (o *observed) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	err := o.NetworkTransport.RequestVote(id, target, args, resp)
	if err == nil {
		o.note(string(id), LogEnd{Term: resp.Term})
	}
	return err
}

// InstallSnapshot notes that the other server has the snapshot.
func (o *observed) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	err := o.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
	if err == nil && resp.Success {
		o.note(string(id), LogEnd{Term: resp.Term, LastTerm: args.LastLogTerm, LastIndex: args.LastLogIndex})
	}
	return err
}

// Close ends the transport and what waits for requests.
func (o *observed) Close() error {
	err := o.NetworkTransport.Close()
	o.once.Do(func() { close(o.done) })
	o.wg.Wait()
	return err
}
