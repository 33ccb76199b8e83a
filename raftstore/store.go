package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
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
	// Server is the server id that Log, the end of its raft log, belongs to; none while
	// the node takes no part in raft.
	Server string `json:"server,omitempty"`
	Log    LogEnd `json:"log"`
	// Reached is how far the node knows each other server to have been, by server id.
	Reached map[string]LogEnd `json:"reached,omitempty"`
}

// Options of a Store.
type Options struct {
	Dir     string // state directory
	Name    string // this node
	ID      string // its raft server id
	Witness bool
	Stream  Stream // peer connections of this epoch
	Peers   Peers
	Log     *slog.Logger
	// Tick scales every interval; default 1 s. Raft's heartbeat timeout is two
	// ticks, the leader's lease one.
	Tick time.Duration
}

// Store is the replicated configuration at one node.
type Store struct {
	opt     Options
	fsm     *machine
	reached *reached
	streams *streams
	stop    chan struct{} // ends saving
	saving  sync.WaitGroup
	ctx     context.Context // ends the loops
	cancel  context.CancelFunc
	loops   sync.WaitGroup

	restarting *access                  // held by whoever ends one run of raft and starts another
	using      *access                  // held for reading by whoever waits for raft
	run        atomic.Pointer[instance] // nil while raft does not run
	setBack    chan error               // what another node said of this one's log

	mu        sync.Mutex
	id        string            // this node's server id
	begun     uint64            // term in which this node, leading, has applied all that was committed before
	confirmed time.Time         // when a quorum was last known to stand behind the leader
	current   time.Time         // when this node was last known to have everything
	refused   map[string]string // servers that were set back, by id, and how far
	failed    error             // why raft does not run although it should

	// Guarded by fsm.mu, so that Changed tells of them.
	recovery  *recovery     // under way
	renounced *Renunciation // this node takes no part
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

// Open starts the store of a node whose directory Create or Adopt has made. It returns
// ErrNoState if there is no configuration. A node whose raft log is gone or older than
// its file serves on, but has renounced: a voter that lost its log must not vote again
// under the same id. A recovery that was cut short is gone on with.
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
	s := &Store{opt: opt, restarting: newAccess(), using: newAccess(), fsm: newMachine(opt.Dir, loaded, opt.Log), stop: make(chan struct{}), setBack: make(chan error, 1), id: opt.ID, refused: map[string]string{}}
	s.fsm.retry = 5 * opt.Tick
	if s.reached, err = loadReached(opt.Dir, opt.Log); err != nil {
		return nil, err
	}
	if err := s.loadPart(); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.streams = newStreams(opt.Stream, opt.ID, s.reached, 5*opt.Tick, opt.Log)
	s.streams.epoch, s.streams.setBack, s.streams.refused = s.Epoch, s.noteSetBack, s.noteRefused
	err = s.restart(func() error {
		switch r := s.recovering(); {
		case r != nil:
			if err := s.rewrite(r); err != nil {
				return fmt.Errorf("recovery: %w", err)
			}
			return nil
		case s.Renounced() != nil:
			return nil
		}
		return checkLog(opt.Dir, loaded)
	})
	switch {
	case errors.Is(err, ErrNoState):
		// What is served needs no raft. As a voter this node is lost.
		if _, err := s.Renounce(err.Error()); err != nil {
			return nil, err
		}
	case err != nil && s.recovering() == nil:
		return nil, err
	case err != nil:
		s.opt.Log.Error("raft is not started", "err", err)
	}
	s.streams.serve()
	s.saving.Go(func() { s.fsm.save(s.stop) })
	s.loops.Go(s.confirmLoop)
	s.loops.Go(s.memberLoop)
	s.loops.Go(s.setBackLoop)
	return s, nil
}

// loadPart reads which part this node takes in raft.
func (s *Store) loadPart() error {
	var rec recovery
	var ren Renunciation
	ok, err := loadJSON(filepath.Join(s.opt.Dir, recoveryName), &rec)
	if err != nil {
		return err
	}
	if ok {
		s.recovery = &rec
	}
	if ok, err = loadJSON(filepath.Join(s.opt.Dir, renouncedName), &ren); err != nil {
		return err
	}
	if ok {
		s.renounced = &ren
	}
	return nil
}

func raftConfig(opt Options, id string) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(id)
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
	// The loops first: raft that stops may leave what they asked of it unanswered.
	s.cancel()
	s.loops.Wait()
	s.using.Lock()
	err := s.stopRaft()
	s.using.Unlock()
	close(s.stop)
	s.saving.Wait()
	return errors.Join(err, s.streams.close())
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
	var p Position
	if x := s.run.Load(); x != nil {
		if end, err := logEnd(x.logs, x.logs, x.snaps); err == nil {
			p.Server, p.Log, p.Reached = x.id, end, s.reached.all()
		}
	}
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	p.Index, p.Hash, p.Followed = s.fsm.saved, s.fsm.hashes[s.fsm.saved], s.fsm.applied.Index
	return p
}

// Compare checks the position of a member of the same epoch against this node's own
// history, records a divergence, and remembers how far that member's log is, and the others'.
func (s *Store) Compare(peer string, p Position) {
	state := s.State()
	s.compareOwn(peer, p)
	if n, ok := state.Nodes[peer]; ok && n.ID == p.Server {
		s.reached.note(p.Server, p.Log)
		// A server that was set back may first meet one that never heard it itself.
		for id, e := range p.Reached {
			if _, ok := state.NodeByID(id); ok && id != s.serverID() {
				s.reached.note(id, e)
			}
		}
	}
	s.fsm.mu.Lock()
	own, ok := s.fsm.hashes[p.Index]
	s.fsm.mu.Unlock()
	if ok && own != p.Hash && p.Hash != "" {
		s.fsm.noteDivergence(fmt.Errorf("%s has another configuration at command %d", peer, p.Index))
	}
}

// compareOwn holds what another member remembers of this node's log against what there
// is. A node that was set back to before the other one's server id gets no raft
// connection on which it could hear of it.
func (s *Store) compareOwn(peer string, p Position) {
	x := s.run.Load()
	if x == nil || s.recovering() != nil {
		return
	}
	was, ok := p.Reached[x.id]
	if !ok {
		return
	}
	if end, err := logEnd(x.logs, x.logs, x.snaps); err == nil && end.behind(was) {
		s.noteSetBack(fmt.Errorf("%w: its log is at %s, and %s has seen it at %s", ErrSetBack, end, peer, was))
	}
}

// Reached returns how far a server's log is known to have been.
func (s *Store) Reached(id string) LogEnd { return s.reached.all()[id] }

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
	// Confirmed is when a quorum was last known; zero: not since the node started.
	Confirmed time.Time
	SetBack   []string // members that were set back to an earlier state, and how far
	Err       error    // divergence, a command of another version, or a file that cannot be written
}

// Status reports on the replication.
func (s *Store) Status() Status {
	id := s.leader()
	state := s.State()
	st := Status{Applied: s.Position().Index, Term: state.Term}
	if n, ok := state.NodeByID(id); ok {
		st.Leader = n.Name
	}
	if x := s.run.Load(); x != nil {
		for _, srv := range x.raft.GetConfiguration().Configuration().Servers {
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
	s.mu.Lock()
	st.Quorum = st.Leader != "" && !s.confirmed.IsZero() && time.Since(s.confirmed) < 5*s.opt.Tick
	st.Confirmed = s.confirmed
	err := s.failed
	for id, was := range s.refused {
		if n, ok := state.NodeByID(id); ok {
			st.SetBack = append(st.SetBack, n.Name+": "+was)
		}
	}
	s.mu.Unlock()
	slices.Sort(st.SetBack)
	s.fsm.mu.Lock()
	st.Err = errors.Join(s.fsm.diverged, s.fsm.stuck, s.fsm.saveErr, s.reached.trouble(), err)
	s.fsm.mu.Unlock()
	return st
}

var _ io.Closer = (*Store)(nil)
