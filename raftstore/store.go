package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

var (
	// ErrNoState says that the directory holds no configuration: it was never made,
	// or it is gone.
	ErrNoState = errors.New("no configuration in the state directory")
	// ErrNoQuorum says that a change was not begun because no leader is in reach.
	ErrNoQuorum = errors.New("no quorum: the change was not made")
	// ErrUnknown says that a change was sent and its outcome is not known. It may
	// still be applied.
	ErrUnknown = errors.New("outcome unknown: the change may still be applied")
)

// Peers is how a store reaches the other members.
type Peers interface {
	// Propose gives an encoded command to the node that leads and returns its
	// encoded Outcome. It returns an error wrapping ErrNotSent if the command
	// certainly did not get there, ErrNoQuorum if that node does not lead.
	Propose(ctx context.Context, node string, command []byte) ([]byte, error)
	// Position asks a node how far it is.
	Position(ctx context.Context, node string) (Position, error)
	// Confirm asks the node that leads to make sure that it does, and then for the
	// index of the last command.
	Confirm(ctx context.Context, node string) (uint64, error)
}

// ErrNotSent says that a request did not reach the other node.
var ErrNotSent = errors.New("not sent")

// Position is how far a node's configuration is.
type Position struct {
	Index uint64 `json:"index"` // of the last command in its file
	Hash  string `json:"hash"`
	// Followed is the index of the last command that raft has given to this process.
	// It is behind Index after a start, until raft has caught up.
	Followed uint64 `json:"followed"`
}

// Options of a Store.
type Options struct {
	Dir     string // state directory
	Name    string // this node
	ID      string // its raft server id
	Witness bool
	Stream  raft.StreamLayer // peer connections of this epoch
	Peers   Peers
	Log     *slog.Logger
	// Tick scales every interval; default 1 s. Raft's heartbeat timeout is two
	// ticks, the leader's lease one.
	Tick time.Duration
}

// Store is the replicated configuration at one node.
type Store struct {
	opt    Options
	fsm    *machine
	raft   *raft.Raft
	logs   *raftboltdb.BoltStore
	trans  *raft.NetworkTransport
	stop   chan struct{} // ends saving
	saving sync.WaitGroup
	ctx    context.Context // ends the loops
	cancel context.CancelFunc
	loops  sync.WaitGroup
	calls  sync.WaitGroup // that raft has to answer

	mu        sync.Mutex
	closed    bool      // no more calls
	begun     uint64    // term in which this node, leading, has applied all that was committed before
	confirmed time.Time // when a quorum was last known to stand behind the leader
	current   time.Time // when this node was last known to have everything
}

const (
	raftDir  = "raft"
	raftFile = "raft.db"
)

// LoadState reads the configuration that a node would boot from. It returns
// ErrNoState if there is none.
func LoadState(dir string) (*State, error) {
	s, err := loadMaterialised(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoState, filepath.Join(dir, materialisedName))
	}
	return s, err
}

// Open starts the store of a node whose directory Create or Adopt has made. It
// returns ErrNoState if the configuration or raft's log is missing: a voter that
// lost its log must not vote again under the same id.
func Open(opt Options) (*Store, error) {
	if opt.Tick == 0 {
		opt.Tick = time.Second
	}
	if err := removeStale(opt.Dir); err != nil {
		return nil, err
	}
	loaded, err := LoadState(opt.Dir)
	if err != nil {
		return nil, err
	}
	if err := checkLog(opt.Dir, loaded); err != nil {
		return nil, err
	}
	s := &Store{opt: opt, fsm: newMachine(opt.Dir, loaded, opt.Log), stop: make(chan struct{})}
	s.fsm.retry = 5 * opt.Tick
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: opt.Stream, MaxPool: 3, Timeout: 10 * opt.Tick, Logger: raftLogger(opt.Log),
		ServerAddressProvider: addresses{s.fsm},
	})
	if s.logs, s.raft, err = openRaft(opt.Dir, s.fsm, s.trans, raftConfig(opt)); err != nil {
		s.trans.Close()
		return nil, err
	}
	s.saving.Go(func() { s.fsm.save(s.stop) })
	s.loops.Go(s.confirmLoop)
	s.loops.Go(s.memberLoop)
	return s, nil
}

func raftConfig(opt Options) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(opt.ID)
	c.HeartbeatTimeout = 2 * opt.Tick
	c.ElectionTimeout = 2 * opt.Tick
	c.LeaderLeaseTimeout = opt.Tick
	c.CommitTimeout = opt.Tick / 20
	c.SnapshotThreshold = 512
	c.TrailingLogs = 2048
	c.NoLegacyTelemetry = true
	c.Logger = raftLogger(opt.Log)
	return c
}

func openRaft(dir string, fsm raft.FSM, trans raft.Transport, c *raft.Config) (*raftboltdb.BoltStore, *raft.Raft, error) {
	dir = filepath.Join(dir, raftDir)
	logs, err := raftboltdb.NewBoltStore(filepath.Join(dir, raftFile))
	if err != nil {
		return nil, nil, fmt.Errorf("open raft log: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, c.Logger)
	if err == nil {
		var r *raft.Raft
		if r, err = raft.NewRaft(c, fsm, logs, logs, snaps, trans); err == nil {
			return logs, r, nil
		}
	}
	return nil, nil, errors.Join(fmt.Errorf("start raft: %w", err), logs.Close())
}

// raftLogger passes raft's warnings and errors on.
func raftLogger(log *slog.Logger) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Warn, DisableTime: true, Output: logLines{log}})
}

type logLines struct{ log *slog.Logger }

func (l logLines) Write(p []byte) (int, error) {
	level, text, _ := strings.Cut(strings.TrimSpace(string(p)), " ")
	text = strings.TrimSpace(text)
	// That a peer cannot be reached is said once, by health.
	for _, chatter := range []string{"failed to appendEntries", "failed to heartbeat", "failed to make requestVote", "failed to contact",
		"failed to decode incoming command", "failed to pipeline", "failed to start pipeline", "Election timeout reached", "heartbeat timeout reached",
		"appendEntries rejected", "failed to get previous log", "Rollback failed"} {
		if strings.Contains(text, chatter) {
			l.log.Debug(text)
			return len(p), nil
		}
	}
	if level == "[ERROR]" {
		l.log.Error(text)
	} else {
		l.log.Info(text)
	}
	return len(p), nil
}

// addresses tells raft where a server is from the configuration itself.
type addresses struct{ m *machine }

func (a addresses) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	a.m.mu.Lock()
	s := a.m.served
	a.m.mu.Unlock()
	if n, ok := s.NodeByID(string(id)); ok {
		return raft.ServerAddress(n.Peer), nil
	}
	return "", fmt.Errorf("no member has the server id %s", id)
}

// Close stops the store. The file is left as it was last written.
func (s *Store) Close() error {
	// Loops and calls first: raft that stops may leave what they asked of it unanswered.
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.loops.Wait()
	s.calls.Wait()
	err := s.raft.Shutdown().Error()
	close(s.stop)
	s.saving.Wait()
	return errors.Join(err, s.trans.Close(), s.logs.Close())
}

// enter begins a call that raft has to answer, unless the store is being closed; the
// caller then ends it with s.calls.Done.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%w: this node is stopping", ErrNoQuorum)
	}
	s.calls.Add(1)
	return nil
}

// State returns the configuration to serve from. It is never changed.
func (s *Store) State() *State {
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	return s.fsm.served
}

// Changed returns a channel that is closed at the next change of anything that
// State, Position or Status report.
func (s *Store) Changed() <-chan struct{} {
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	return s.fsm.changed
}

// Position returns how far this node's file is.
func (s *Store) Position() Position {
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	return Position{s.fsm.saved, s.fsm.hashes[s.fsm.saved], s.fsm.applied.Index}
}

// Compare checks a peer's position against this node's own history and records a
// divergence.
func (s *Store) Compare(peer string, p Position) {
	s.fsm.mu.Lock()
	own, ok := s.fsm.hashes[p.Index]
	s.fsm.mu.Unlock()
	if ok && own != p.Hash && p.Hash != "" {
		s.fsm.noteDivergence(fmt.Errorf("%s has another configuration at command %d", peer, p.Index))
	}
}

// Current reports whether this node is known to have every committed command: the
// leader confirmed it within the last five ticks.
func (s *Store) Current() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.current.IsZero() && time.Since(s.current) < 5*s.opt.Tick
}

// Status is what an operator sees of the replication.
type Status struct {
	Leader   string // name; empty if none is known
	Quorum   bool   // changes can be made
	Applied  uint64 // index of the last command in the file
	Term     uint64
	Voters   []string
	Learners []string // members that do not vote yet
	Err      error    // divergence, a command of another version, or a file that cannot be written
}

// Status reports on the replication.
func (s *Store) Status() Status {
	_, id := s.raft.LeaderWithID()
	state := s.State()
	st := Status{Applied: s.Position().Index, Term: state.Term}
	if n, ok := state.NodeByID(string(id)); ok {
		st.Leader = n.Name
	}
	s.mu.Lock()
	st.Quorum = st.Leader != "" && !s.confirmed.IsZero() && time.Since(s.confirmed) < 5*s.opt.Tick
	s.mu.Unlock()
	f := s.raft.GetConfiguration()
	if f.Error() == nil {
		for _, srv := range f.Configuration().Servers {
			name := string(srv.ID)
			if n, ok := state.NodeByID(name); ok {
				name = n.Name
			}
			if srv.Suffrage == raft.Voter {
				st.Voters = append(st.Voters, name)
			} else {
				st.Learners = append(st.Learners, name)
			}
		}
	}
	s.fsm.mu.Lock()
	st.Err = errors.Join(s.fsm.diverged, s.fsm.stuck, s.fsm.saveErr)
	s.fsm.mu.Unlock()
	return st
}

var _ io.Closer = (*Store)(nil)
