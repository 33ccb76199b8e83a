package configsim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"msgw/raftstore"
)

const tick = time.Second

// machine is a machine of the cluster: a disk, and one process at a time.
type machine struct {
	w    *world
	name string // by which the network knows it
	node raftstore.Node
	dir  string // state directory
	dirs int    // that were made

	// Guarded by world.mu.
	process *process
	id      string           // server id; a rejoin changes it
	served  *raftstore.State // the newest that was served
	away    bool             // the directory cannot be written to
}

// process is one run of a node: a store, and what it talks to.
type process struct {
	m    *machine
	end  *endpoint
	dir  string
	boot *raftstore.State
	open atomic.Pointer[raftstore.Store]
	dead chan struct{} // closed when it has ended
	// crashed says that it ended without telling anybody anything more.
	crashed atomic.Bool

	mu    sync.Mutex
	ended bool
	calls sync.WaitGroup // of others, and watching
}

// running returns the machine's process, or nil.
func (m *machine) running() *process {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.process
}

func (m *machine) serverID() string {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.id
}

// fresh returns the name of a directory that was not used yet.
func (m *machine) fresh() string {
	m.dirs++
	return filepath.Join(m.w.dir, fmt.Sprintf("%s.%d", m.name, m.dirs))
}

// start runs the machine's node.
func (m *machine) start() error {
	file, err := raftstore.LoadState(m.dir)
	if err != nil {
		return err
	}
	m.w.observe(m, file, "boots from")
	m.w.net.begin(m.name)
	p := &process{m: m, dir: m.dir, boot: file, dead: make(chan struct{})}
	p.end = &endpoint{machine: m.name, node: p}
	s, err := raftstore.Open(raftstore.Options{Dir: m.dir, Name: m.node.Name, ID: m.serverID(), Witness: m.node.Role == raftstore.Witness,
		Stream: stream{m.w.net.listen(p.end), p}, Peers: peers{p}, Log: m.w.log.With("node", m.name), Tick: tick})
	if err != nil {
		m.w.net.end(p.end, false, false)
		return err
	}
	p.open.Store(s)
	if s.State().Index < file.Index {
		m.w.fail("%s serves %d, its file held %d", m.name, s.State().Index, file.Index)
	}
	m.w.mu.Lock()
	m.process = p
	m.w.mu.Unlock()
	p.calls.Go(p.watch)
	p.calls.Go(p.compare)
	p.calls.Go(p.keepLineage)
	return nil
}

// stop ends the node as an operator would.
func (m *machine) stop() {
	if p := m.running(); p != nil {
		if err := p.store().Close(); err != nil {
			m.w.fail("%s: close: %v", m.name, err)
		}
		m.ends(p, false, true)
		p.calls.Wait()
	}
}

// crash ends the node at this moment: what it does from now on, nobody sees. All that
// happens without the passing of time has happened, as in a bubble nothing else is still
// to be waited for.
func (m *machine) crash(silent, arrives bool) {
	p := m.running()
	if p == nil {
		return
	}
	synctest.Wait()
	dir := m.fresh()
	m.w.must(copyDir(p.dir, dir))
	p.crashed.Store(true)
	m.ends(p, silent, arrives)
	m.dir = dir
	m.w.wg.Go(func() {
		_ = p.store().Close() // of no consequence
		p.calls.Wait()
		m.w.must(os.RemoveAll(p.dir))
	})
}

func (m *machine) ends(p *process, silent, arrives bool) {
	m.w.mu.Lock()
	m.process = nil
	m.w.mu.Unlock()
	m.w.net.end(p.end, silent, arrives)
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	close(p.dead)
}

func copyDir(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range list {
		a, b := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			err = copyDir(a, b)
		} else {
			err = copyFile(a, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

func (p *process) store() *raftstore.Store { return p.open.Load() }

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// state is what the node goes by: that of its store, once there is one.
func (p *process) state() *raftstore.State {
	if s := p.store(); s != nil {
		return s.State()
	}
	return p.boot
}

// watch looks at everything that the node serves.
func (p *process) watch() {
	for {
		changed := p.store().Changed()
		p.m.w.observe(p.m, p.store().State(), "serves")
		if err := p.store().Status().Err; err != nil && !p.isDead() {
			p.m.w.mu.Lock()
			away := p.m.away
			p.m.w.mu.Unlock()
			if !away {
				p.m.w.fail("%s: %v", p.m.name, err)
			}
		}
		select {
		case <-changed:
		case <-p.dead:
			return
		}
	}
}

// compare tells the store where the others are, as a node does with their reports.
func (p *process) compare() {
	for {
		select {
		case <-time.After(2 * tick):
		case <-p.dead:
			return
		}
		for _, n := range p.state().SortedNodes() {
			if n.Name == p.m.node.Name {
				continue
			}
			type report struct {
				epoch    raftstore.Epoch
				position raftstore.Position
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*tick)
			r, err := call(ctx, p, n.Name, false, func(q *process) (report, error) {
				return report{q.state().Epoch, q.store().Position()}, nil
			})
			cancel()
			if err == nil && r.epoch == p.state().Epoch {
				p.store().Compare(n.Name, r.position)
			}
		}
	}
}

// admits says whether two processes give each other a connection: each is a member in
// the other's eyes, and both are of one epoch if that is asked for.
func admits(p, q *process, epoch bool) bool {
	if !epoch {
		return true // what they say then is for former members, too
	}
	a, b := p.state(), q.state()
	_, there := a.NodeByID(q.m.serverID())
	_, back := b.NodeByID(p.m.serverID())
	return there && back && p.epoch() == q.epoch()
}

// epoch is what the node's connections are made in.
func (p *process) epoch() raftstore.Epoch {
	if s := p.store(); s != nil {
		return s.Epoch()
	}
	return p.boot.Epoch
}

// stream is the raftstore.Stream of a process.
type stream struct {
	*listener
	p *process
}

func (s stream) DialContext(ctx context.Context, a raft.ServerAddress) (net.Conn, error) {
	return s.p.m.w.net.dial(ctx, s.p.end, string(a), func(q *process) bool { return admits(s.p, q, true) })
}

// peers is the raftstore.Peers of a process.
type peers struct{ p *process }

func (c peers) Propose(ctx context.Context, node string, command []byte) ([]byte, error) {
	n := c.p.m.w.net
	n.mu.Lock()
	n.sent(c.p.m.name, holdsCommand)
	n.mu.Unlock()
	return call(ctx, c.p, node, true, func(q *process) ([]byte, error) { return q.store().Receive(command) })
}

func (c peers) Position(ctx context.Context, node string) (raftstore.Position, error) {
	return call(ctx, c.p, node, true, func(q *process) (raftstore.Position, error) { return q.store().Position(), nil })
}

func (c peers) Confirm(ctx context.Context, node string) (uint64, error) {
	return call(ctx, c.p, node, true, func(q *process) (uint64, error) { return q.store().Confirm() })
}

// call lets p ask a node something. An error that is not raftstore.ErrNotSent leaves it
// open whether it was done.
func call[T any](ctx context.Context, p *process, node string, epoch bool, f func(*process) (T, error)) (out T, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	network := p.m.w.net
	n, ok := p.state().Nodes[node]
	if !ok {
		return out, fmt.Errorf("%w: no node is named %s", raftstore.ErrNotSent, node)
	}
	l, err := network.connect(ctx, p.end, n.Peer)
	if err != nil {
		return out, fmt.Errorf("%w: %w", raftstore.ErrNotSent, err)
	}
	q := l.of.node
	if q.store() == nil || q.m.node.Name != n.Name || epoch && q.m.serverID() != n.ID || !admits(p, q, epoch) {
		return out, fmt.Errorf("%w: %w", raftstore.ErrNotSent, errHandshake)
	}
	if err := network.crosses(ctx, p.end, q.end); err != nil {
		return out, err
	}
	done := make(chan struct{})
	var said T // by q, which may answer when nobody waits any more
	var fault error
	if !q.serves(func() { said, fault = f(q); close(done) }) {
		return out, syscall.ECONNRESET
	}
	var none T
	select {
	case <-done:
	case <-ctx.Done():
		return none, ctx.Err()
	case <-p.dead:
		return none, net.ErrClosed
	case <-q.dead:
		if q.end.silent {
			<-ctx.Done()
		}
		return none, syscall.ECONNRESET
	}
	if lost := network.crosses(ctx, q.end, p.end); lost != nil {
		return none, lost
	}
	return said, fault
}

// serves starts the answer to a call, unless the process has ended.
func (p *process) serves(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	p.calls.Go(f)
	return true
}
