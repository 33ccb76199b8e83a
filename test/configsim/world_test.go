package configsim

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"msgw/raftstore"
)

// world is the machines of a cluster, their network, and all that was seen of them.
type world struct {
	t    *testing.T
	seed uint64
	dir  string
	log  *slog.Logger
	net  *network
	stop chan struct{}
	wg   sync.WaitGroup

	mu       sync.Mutex
	machines []*machine
	made     int // machines, lost ones too
	failures []string
	// What was served anywhere, by epoch and index: the state there is one.
	seen    map[place][sha256.Size]byte
	history history
	counts  map[string]int // of what was done and answered
	values  values
}

// place is a place in the history of the configuration.
type place struct {
	epoch raftstore.Epoch
	index uint64
}

// shm is a file system in memory: a flush costs nothing there, and nothing here depends
// on what a flush does.
const shm = "/dev/shm"

func newWorld(t *testing.T, seed uint64, log *slog.Logger) *world {
	parent := shm
	if _, err := os.Stat(shm); err != nil {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "configsim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, seed: seed, dir: dir, log: log, net: newNetwork(rand.New(rand.NewPCG(seed, 2))), stop: make(chan struct{}),
		seen: map[place][sha256.Size]byte{}, history: newHistory(), counts: map[string]int{}}
}

func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(format, args...)
}

func (w *world) failLocked(format string, args ...any) {
	if len(w.failures) < 20 {
		w.failures = append(w.failures, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// count counts what happens; w.mu is held.
func (w *world) count(what string) { w.counts[what]++ }

// must ends the test: something went wrong that is no matter of the store's.
func (w *world) must(err error) {
	if err != nil {
		panic(err)
	}
}

// observe checks a state that a machine serves or starts from: it is the one that any
// other had at this place, and not older than what this machine served before.
func (w *world) observe(m *machine, s *raftstore.State, does string) {
	b, err := json.Marshal(s)
	w.must(err)
	sum, at := sha256.Sum256(b), place{s.Epoch, s.Index}
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.served == s {
		return
	}
	if known, ok := w.seen[at]; ok && known != sum {
		w.failLocked("%s %s another configuration at %d than was seen before: %s", m.name, does, s.Index, b)
	}
	w.seen[at] = sum
	// A recovery from the file counts its log anew.
	if m.served != nil && (s.Epoch == m.served.Epoch && s.Index < m.served.Index && len(s.Recent) > 0 && s.Revision <= m.served.Revision || s.Revision < m.served.Revision) {
		w.failLocked("%s %s index %d, revision %d; it served index %d, revision %d before", m.name, does, s.Index, s.Revision, m.served.Index, m.served.Revision)
	}
	m.served = s
	w.history.saw(s)
}

func (w *world) newMachine(name string, role raftstore.Role) *machine {
	w.made++
	m := &machine{w: w, name: fmt.Sprintf("m%d-%s", w.made, name)}
	m.node = raftstore.Node{Name: name, ID: "id-" + m.name, Role: role, Peer: m.name, Weight: 1}
	m.id = m.node.ID
	if role == raftstore.Site {
		m.node.Host = name + ".msgw.example.com"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.machines = append(w.machines, m)
	return m
}

// all returns the machines.
func (w *world) all() []*machine {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*machine(nil), w.machines...)
}
