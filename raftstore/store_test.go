package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"msgw/internal/seal"
)

const tick = 60 * time.Millisecond

// stream is a StreamLayer over plain TCP; cut makes it refuse both directions.
type stream struct {
	net.Listener
	epoch atomic.Value // string; what is carried is refused between two that differ
	all   *cluster
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func (s *stream) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	return !s.cut
}

func (s *stream) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil || s.track(c) {
			return c, err
		}
		c.Close()
	}
}

func (s *stream) DialContext(ctx context.Context, a raft.ServerAddress) (net.Conn, error) {
	if !s.all.share(s, string(a)) {
		return nil, errors.New("another epoch")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", string(a))
	if err == nil && !s.track(c) {
		c.Close()
		err = errors.New("cut")
	}
	return c, err
}

func (s *stream) isCut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cut
}

func (s *stream) setCut(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = on
	if on {
		for _, c := range s.conns {
			c.Close()
		}
		s.conns = nil
	}
}

// member is one node of a test cluster.
type member struct {
	t       *testing.T
	cluster *cluster
	node    Node
	dir     string
	stream  *stream
	store   *Store
	calls   bool        // its peer calls work even while its stream is cut
	loses   atomic.Bool // what it proposes next arrives, the answer does not, and then nothing
}

type cluster struct {
	t  *testing.T
	mu sync.Mutex
	m  map[string]*member
}

// peersOf lets a member call the others' stores directly.
type peersOf struct{ *member }

func (p peersOf) to(name string) (*Store, error) {
	p.cluster.mu.Lock()
	defer p.cluster.mu.Unlock()
	o := p.cluster.m[name]
	if o == nil || o.store == nil || o.stream.epoch.Load() != p.stream.epoch.Load() || (o.stream.isCut() || p.stream.isCut()) && !o.calls && !p.calls {
		return nil, ErrNotSent
	}
	return o.store, nil
}

func (p peersOf) Propose(_ context.Context, name string, b []byte) ([]byte, error) {
	s, err := p.to(name)
	if err != nil {
		return nil, err
	}
	if p.loses.CompareAndSwap(true, false) {
		p.cluster.cutAll()
		return nil, errors.New("connection lost")
	}
	return s.Receive(b)
}

func (p peersOf) Position(_ context.Context, name string) (Position, error) {
	s, err := p.to(name)
	if err != nil {
		return Position{}, err
	}
	return s.Position(), nil
}

func (p peersOf) Confirm(_ context.Context, name string) (uint64, error) {
	s, err := p.to(name)
	if err != nil {
		return 0, err
	}
	return s.Confirm()
}

// share returns whether a member and the one at an address are of one epoch.
func (c *cluster) share(s *stream, addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.m {
		if m.node.Peer == addr {
			return m.stream.epoch.Load() == s.epoch.Load()
		}
	}
	return false
}

func (c *cluster) cutAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.m {
		m.stream.setCut(true)
	}
}

func (c *cluster) newMember(name string, role Role) *member {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	m := &member{t: c.t, cluster: c, dir: c.t.TempDir(), stream: &stream{Listener: l, all: c},
		node: Node{Name: name, ID: "id-" + name, Role: role, Peer: l.Addr().String(), Weight: 1}}
	if role == Site {
		m.node.Host = name + ".msgw.example.com"
	}
	c.mu.Lock()
	c.m[name] = m
	c.mu.Unlock()
	c.t.Cleanup(m.close)
	return m
}

func (m *member) open() {
	m.t.Helper()
	if m.stream.Listener == nil {
		l, err := net.Listen("tcp", m.node.Peer)
		if err != nil {
			m.t.Fatal(err)
		}
		m.stream.Listener = l
	}
	s, err := Open(Options{Dir: m.dir, Name: m.node.Name, ID: m.node.ID, Witness: m.node.Role == Witness,
		Stream: m.stream, Peers: peersOf{m}, Log: slog.New(slog.DiscardHandler), Tick: tick})
	if err != nil {
		m.t.Fatal(err)
	}
	m.cluster.mu.Lock()
	m.store = s
	m.cluster.mu.Unlock()
}

func (m *member) close() {
	m.cluster.mu.Lock()
	s := m.store
	m.store = nil
	m.cluster.mu.Unlock()
	if s != nil {
		if err := s.Close(); err != nil {
			m.t.Error(err)
		}
		m.stream.Listener = nil // the transport closed it
	}
}

func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(tick / 6) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

func (m *member) propose(ch Change) (uint64, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	return m.store.Propose(ctx, ch)
}

func (m *member) must(ch Change) uint64 {
	m.t.Helper()
	i, err := m.propose(ch)
	if err != nil {
		m.t.Fatalf("%s: %v", ch.op(), err)
	}
	return i
}

func start(t *testing.T) (*cluster, *member) {
	t.Helper()
	c := &cluster{t: t, m: map[string]*member{}}
	a := c.newMember("msgw1", Site)
	first := &State{Cluster: "c1", Epoch: Epoch{1, "0011223344556677"}, Zone: Zone{Name: "msgw.example.com", MXMode: "tier"},
		Nodes: map[string]Node{"msgw1": a.node}, Mailboxes: map[string]Mailbox{}, Invites: map[string]Invite{}, CA: CA{SealedTo: []string{"msgw1"}}}
	if err := Create(a.dir, a.node.ID, first); err != nil {
		t.Fatal(err)
	}
	a.open()
	return c, a
}

// join adds a member through via and waits until it votes.
func (c *cluster) join(via *member, name string, role Role) *member {
	c.t.Helper()
	b := c.admit(via, name, role)
	b.open()
	within(c.t, 20*time.Second, name+" votes", func() bool { return slices.Contains(via.store.Status().Voters, name) })
	return b
}

// admit adds a member through via that has not been started.
func (c *cluster) admit(via *member, name string, role Role) *member {
	c.t.Helper()
	b := c.newMember(name, role)
	via.must(AddInvite{Invite{ID: "inv-" + name, Role: role, Expires: time.Now().Add(time.Hour)}})
	sites := via.store.State().Sites()
	if role == Site {
		sites = append(sites, name)
	}
	via.must(JoinNode{Invite: "inv-" + name, Node: b.node, CA: CA{SealedTo: sites}})
	if err := Adopt(b.dir, via.store.State()); err != nil {
		c.t.Fatal(err)
	}
	return b
}

func mailbox(n int) CreateMailbox {
	return CreateMailbox{ID: fmt.Sprintf("mbx-%032x", n), Key: seal.Key{ID: "k1", Recipient: "r", State: seal.Active}}
}

func TestTwoSites(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	i := b.must(mailbox(1)) // through the node that does not lead
	within(t, 10*time.Second, "both have it", func() bool {
		return a.store.Position().Index >= i && b.store.Position().Index >= i
	})
	if p, q := a.store.Position(), b.store.Position(); p.Index != q.Index || p.Hash != q.Hash {
		t.Errorf("positions differ: %+v %+v", p, q)
	}
	if x, _ := json.Marshal(a.store.State()); true {
		if y, _ := json.Marshal(b.store.State()); string(x) != string(y) {
			t.Errorf("states differ:\n%s\n%s", x, y)
		}
	}
	rev := a.store.State().Revision
	var rej *Rejection
	if _, err := a.propose(mailbox(1)); !errors.As(err, &rej) || rej.Code != "exists" {
		t.Errorf("created twice: %v", err)
	}
	if got := a.store.State().Revision; got != rev {
		t.Errorf("a rejected command raised the revision from %d to %d", rev, got)
	}
	within(t, 10*time.Second, "both current", func() bool { return a.store.Current() && b.store.Current() })
	if st := b.store.Status(); !st.Quorum || st.Leader == "" || st.Err != nil {
		t.Errorf("status %+v", st)
	}
}

// Without the other site a node boots and serves what it knew; a change is refused
// and is not made later either.
func TestWithoutQuorum(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	i := a.must(mailbox(1))
	within(t, 10*time.Second, "both have it", func() bool { return b.store.Position().Index >= i })
	a.close()
	b.close()
	b.open()
	if _, ok := b.store.State().Mailboxes[mailbox(1).ID]; !ok {
		t.Fatal("restarted without quorum, the mailbox is not known")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*tick)
	defer cancel()
	if _, err := b.store.Propose(ctx, mailbox(2)); !errors.Is(err, ErrNoQuorum) {
		t.Errorf("change without quorum: %v", err)
	}
	if b.store.Current() || b.store.Status().Quorum {
		t.Error("claims to be up to date")
	}
	a.open()
	i = b.must(mailbox(3)) // heals by itself
	within(t, 10*time.Second, "both have it", func() bool { return a.store.Position().Index >= i })
	for _, m := range []*member{a, b} {
		if _, ok := m.store.State().Mailboxes[mailbox(2).ID]; ok {
			t.Errorf("%s: the refused change was made", m.node.Name)
		}
		if err := m.store.Status().Err; err != nil {
			t.Errorf("%s: %v", m.node.Name, err)
		}
	}
}

// While the link is cut a change is refused or its outcome is said to be unknown;
// afterwards both agree, and nothing reported as made is missing.
func TestCutWhileProposing(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	made := map[int]bool{}
	refused := map[int]bool{}
	for n := range 30 {
		if n%10 == 5 {
			a.stream.setCut(true)
		}
		if n%10 == 9 {
			a.stream.setCut(false)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 8*tick)
		_, err := []*member{a, b}[n%2].store.Propose(ctx, mailbox(n))
		cancel()
		switch {
		case err == nil:
			made[n] = true
		case errors.Is(err, ErrUnknown), strings.Contains(err.Error(), "the change is made"):
		case errors.Is(err, ErrNoQuorum):
			refused[n] = true
		default:
			t.Errorf("%d: %v", n, err)
		}
	}
	a.stream.setCut(false)
	i := b.must(mailbox(1000))
	within(t, 10*time.Second, "both have it", func() bool { return a.store.Position().Index >= i && b.store.Position().Index >= i })
	if len(made) == 0 || len(refused) == 0 {
		t.Errorf("%d made, %d refused: the test shows nothing", len(made), len(refused))
	}
	for _, m := range []*member{a, b} {
		for n := range 30 {
			_, ok := m.store.State().Mailboxes[mailbox(n).ID]
			if made[n] && !ok || refused[n] && ok {
				t.Errorf("%s: mailbox %d: made %v, refused %v, is there %v", m.node.Name, n, made[n], refused[n], ok)
			}
		}
	}
}

func TestWitness(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	w := c.join(a, "witness", Witness)
	within(t, 10*time.Second, "three voters", func() bool { return len(w.store.Status().Voters) == 3 })
	a.close()
	b.must(mailbox(1)) // the witness makes the quorum
	within(t, 20*time.Second, "a site leads", func() bool { return b.store.Status().Leader == "msgw2" })
	a.open()
	if _, err := b.propose(SetWeight{Node: "witness", Weight: 2}); err == nil {
		t.Error("a witness got a weight")
	}
	if _, err := b.propose(AddInvite{Invite{ID: "second", Role: Witness, Expires: time.Now().Add(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.propose(JoinNode{Invite: "second", Node: Node{Name: "w2", ID: "x", Peer: "127.0.0.1:1", Role: Witness}, CA: b.store.State().CA}); err == nil {
		t.Error("a second witness joined")
	}
}

func TestRefusesToStartWithoutState(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	a.close()
	if err := os.Remove(filepath.Join(a.dir, materialisedName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: a.dir, Name: "msgw1", ID: a.node.ID, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, ErrNoState) {
		t.Errorf("without %s: %v", materialisedName, err)
	}
	if err := Create(a.dir, "x", &State{}); err == nil {
		t.Error("a second cluster was made over the first")
	}
}

// The same request twice is one change, with one outcome.
func TestRequestIsAppliedOnce(t *testing.T) {
	t.Parallel()
	s := emptyState()
	first := &State{Format: 1, Cluster: "c", Nodes: map[string]Node{"a": {Name: "a", Role: Site}}, Mailboxes: map[string]Mailbox{}, Invites: map[string]Invite{}}
	step := func(c Command, index uint64) Outcome {
		t.Helper()
		raw, _ := json.Marshal(c)
		next, out, err := s.apply(raw, index, 1)
		if err != nil {
			t.Fatal(err)
		}
		s = next
		return out
	}
	if out := step(newCommand("a", mailbox(1), time.Now()), 1); out.Rejection == nil {
		t.Error("a command before init was applied")
	}
	step(newCommand("a", initState{first}, time.Now()), 2)
	c := newCommand("a", mailbox(1), time.Now())
	one := step(c, 3)
	rev, hash := s.Revision, s.Hash
	two := step(c, 4)
	if one.Rejection != nil || two.Index != 3 || two.Rejection != nil || s.Revision != rev || len(s.Mailboxes) != 1 {
		t.Errorf("first %+v, again %+v, revision %d then %d", one, two, rev, s.Revision)
	}
	if s.Hash == hash || s.Index != 4 {
		t.Error("the chain does not cover the second command")
	}
	for i := range uint64(2 * keepOutcomes) {
		step(newCommand("a", mailbox(1), time.Now()), 6+i)
	}
	if len(s.Recent) != keepOutcomes {
		t.Errorf("%d outcomes kept", len(s.Recent))
	}
}

func TestChangesAreChecked(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	a.must(mailbox(1))
	id := mailbox(1).ID
	k2 := seal.Key{ID: "k2", Recipient: "r2"}
	k1 := mailbox(1).Key
	for _, tc := range []struct {
		ch   Change
		code string
	}{
		{CreateMailbox{ID: "mbx-1"}, "invalid"},
		{SetStatus{"mbx-none", Suspended}, "missing"},
		{SetStatus{id, Retired}, "conflict"},
		{SetStatus{id, "on"}, "invalid"},
		{SetKeys{id, 7, []seal.Key{k1}}, "conflict"},
		{SetKeys{id, 1, []seal.Key{k2}}, "invalid"},
		{SetKeys{id, 1, []seal.Key{{ID: k1.ID, Recipient: k1.Recipient}}}, "invalid"},
		{SetKeys{id, 1, []seal.Key{k1, {ID: "k2", State: seal.Active}}}, "invalid"},
		{SetKeys{id, 1, []seal.Key{k1, k2}}, ""},
		{PurgeMailbox{id}, "conflict"},
		{SetStatus{id, Suspended}, ""},
		{SetStatus{id, Retired}, ""},
		{SetStatus{id, Active}, "conflict"},
		{CreateMailbox{ID: id}, "exists"},
		{PurgeMailbox{id}, ""},
		{mailbox(1), ""},
		{SetWeight{"nobody", 1}, "missing"},
		{SetWeight{"msgw1", MaxWeight + 1}, "invalid"},
		{SetWeight{"msgw1", 3}, ""},
		{UpdateNode{Node{Name: "msgw1", ID: "other"}}, "missing"},
		{SetACME{ACME{Directory: "http://x"}}, "invalid"},
		{JoinNode{Invite: "none"}, "missing"},
		{AddInvite{Invite{ID: "i1", Role: Site, Expires: time.Now().Add(-time.Second)}}, ""},
		{JoinNode{Invite: "i1", Node: Node{Name: "x", Role: Site}}, "conflict"},
		{AddInvite{Invite{ID: "i2", Role: Site, Expires: time.Now().Add(time.Hour)}}, ""},
		{JoinNode{Invite: "i2", Node: Node{Name: "X!", Role: Site}}, "invalid"},
		{JoinNode{Invite: "i2", Node: Node{Name: "w", Role: Witness}}, "invalid"},
		{JoinNode{Invite: "i2", Node: Node{Name: "msgw2", Peer: "p", Role: Site}}, "invalid"},
		{JoinNode{Invite: "i2", Node: Node{Name: "msgw2", ID: "y", Role: Site}}, "invalid"},
		{JoinNode{Invite: "i2", Node: Node{Name: "msgw1", ID: "y", Peer: "p", Role: Site}}, "exists"},
		{JoinNode{Invite: "i2", Node: Node{Name: "msgw2", ID: "id-msgw1", Peer: "p", Role: Site}}, "exists"},
		{JoinNode{Invite: "i2", Node: Node{Name: "msgw2", ID: "y", Peer: "p", Role: Site}, CA: CA{SealedTo: []string{"msgw1"}}}, "conflict"},
	} {
		_, err := a.propose(tc.ch)
		var rej *Rejection
		if errors.As(err, &rej) != (tc.code != "") || err != nil && rej.Code != tc.code {
			t.Errorf("%s %+v: %v, want %q", tc.ch.op(), tc.ch, err, tc.code)
		}
	}
	if n := len(a.store.State().Nodes); n != 1 {
		t.Errorf("%d nodes after refused joins", n)
	}
}

func TestDivergenceIsSeen(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	p := a.store.Position()
	a.store.Compare("msgw2", p)
	a.store.Compare("msgw2", Position{Index: p.Index + 1000, Hash: "x"}) // not known here yet
	if err := a.store.Status().Err; err != nil {
		t.Fatal(err)
	}
	a.store.Compare("msgw2", Position{Index: p.Index, Hash: "x"})
	if err := a.store.Status().Err; err == nil || !strings.Contains(err.Error(), "msgw2") {
		t.Errorf("divergence: %v", err)
	}
}

func TestSnapshotAndReplay(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	for n := range 20 {
		a.must(mailbox(n))
		if n == 10 {
			if err := a.store.run.Load().raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := a.store.Position()
	a.close()
	a.open()
	a.must(mailbox(100))
	if err := a.store.Status().Err; err != nil || len(a.store.State().Mailboxes) != 21 {
		t.Errorf("%d mailboxes, %v", len(a.store.State().Mailboxes), err)
	}
	if got := a.store.fsm.hashes[want.Index]; got != want.Hash {
		t.Errorf("replay gave %s, want %s", got, want.Hash)
	}
}
