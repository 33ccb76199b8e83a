package configsim

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"msgw/raftstore"
)

// pace is how long a client waits between two changes, on average.
const pace = 800 * time.Millisecond

// director does things to the world.
type director struct {
	*world
	rng   *mathrand.Rand
	story []string
}

func (d *director) chance(n int) bool { return d.rng.IntN(n) == 0 }

// nap waits up to a while.
func (d *director) nap(most time.Duration) { time.Sleep(time.Duration(d.rng.Int64N(int64(most)))) }

// note says what is being done, now.
func (d *director) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	name, _, _ := strings.Cut(text, ":")
	d.mu.Lock()
	d.count(name)
	d.mu.Unlock()
	d.story = append(d.story, time.Now().Format("15:04:05.000 ")+text)
}

// some returns one of the machines.
func (d *director) some() *machine {
	all := d.all()
	return all[d.rng.IntN(len(all))]
}

// begin makes the cluster: two sites, or two sites and a witness.
func (d *director) begin() {
	a := d.newMachine("msgw1", raftstore.Site)
	a.dir = a.fresh()
	d.must(os.Mkdir(a.dir, 0o700))
	d.must(raftstore.Create(a.dir, a.node.ID, &raftstore.State{Cluster: "c1", Epoch: raftstore.Epoch{Number: 1, ID: "0011223344556677"},
		Zone: raftstore.Zone{Name: "msgw.example.com", MXMode: "tier"}, Nodes: map[string]raftstore.Node{"msgw1": a.node},
		Mailboxes: map[string]raftstore.Mailbox{}, Invites: map[string]raftstore.Invite{}, CA: raftstore.CA{SealedTo: []string{"msgw1"}}}))
	d.must(a.start())
	d.join(a, "msgw2", raftstore.Site)
	if d.chance(2) {
		d.join(a, "witness", raftstore.Witness)
	}
	d.history.start = cells(a.running().store().State())
}

// operator lets an operator make a change at a machine, whatever it takes.
func (d *director) operator(m *machine, ch raftstore.Change) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*tick)
	defer cancel()
	if _, err := m.running().store().Propose(ctx, ch); err != nil {
		d.fail("%T at %s: %v", ch, m.name, err)
	}
}

// join adds a machine through another one. Until it has come, the others go on without
// it.
func (d *director) join(via *machine, name string, role raftstore.Role) {
	m := d.newMachine(name, role)
	d.note("join: %s, a %s", m.name, role)
	d.operator(via, raftstore.AddInvite{Invite: raftstore.Invite{ID: name, Role: role, Expires: time.Now().Add(time.Hour)}})
	sites := via.running().store().State().Sites()
	if role == raftstore.Site {
		sites = append(sites, name)
	}
	d.operator(via, raftstore.JoinNode{Invite: name, Node: m.node, CA: raftstore.CA{SealedTo: sites}})
	m.dir = m.fresh()
	d.must(os.Mkdir(m.dir, 0o700))
	d.must(raftstore.Adopt(m.dir, via.running().store().State()))
	if d.chance(4) {
		// It answers, and raft does not get to it: it must not vote.
		time.Sleep(3 * tick)
		d.operator(via, raftstore.SetWeight{Node: "msgw1", Weight: 1})
	}
	if err := m.start(); err != nil {
		d.fail("%s does not start: %v", m.name, err)
		return
	}
	if !d.within(60*tick, func() bool { return slices.Contains(via.running().store().Status().Voters, name) }) {
		d.fail("%s joined, and does not vote", m.name)
	}
}

// within waits until something is so, and returns whether it became so in time.
func (d *director) within(most time.Duration, so func() bool) bool {
	for end := time.Now().Add(most); !so(); time.Sleep(tick / 4) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

func (d *director) step() {
	switch d.rng.IntN(16) {
	case 0, 1:
		d.cutNetwork()
	case 2:
		d.isolate()
	case 3, 4, 5:
		d.crash()
	case 6:
		d.restart()
	case 7:
		d.allCrash()
	case 8:
		d.slowNetwork()
	case 9:
		d.moment()
		a, b := d.two()
		d.note("break: %s %s", a.name, b.name)
		d.net.breakBetween(a.name, b.name)
	case 10:
		d.fullDisk()
	case 11:
		d.crashOften()
	case 12, 13:
		d.loseSite()
	case 14, 15:
		d.setBack()
	}
}

// moment waits for a good time to do something: any, or when a change is under way.
func (d *director) moment() {
	if d.chance(3) {
		d.nap(3 * tick)
		return
	}
	t := &trap{machine: d.some().name, answers: d.chance(2), left: d.rng.IntN(2), sprung: make(chan struct{})}
	d.net.set(t)
	select {
	case <-t.sprung:
	case <-time.After(5 * tick):
		d.net.set(nil)
	}
}

func (d *director) two() (*machine, *machine) {
	all := d.all()
	i := d.rng.IntN(len(all))
	j := d.rng.IntN(len(all) - 1)
	if j >= i {
		j++
	}
	return all[i], all[j]
}

func (d *director) cut() cut { return cut(d.rng.IntN(3)) }

// cutNetwork cuts the network between two machines for a while, one way or both.
func (d *director) cutNetwork() {
	a, b := d.two()
	there, back := d.cut(), d.cut()
	d.moment()
	d.note("network: %s to %s %s, back %s", a.name, b.name, there, back)
	d.net.cut(a.name, b.name, there)
	d.net.cut(b.name, a.name, back)
	d.nap(10 * tick)
	d.mend()
}

// isolate cuts one machine from all others.
func (d *director) isolate() {
	m := d.some()
	d.moment()
	d.note("isolated: %s", m.name)
	for _, o := range d.all() {
		if o != m {
			d.net.cut(m.name, o.name, []cut{dropped, refused}[d.rng.IntN(2)])
			d.net.cut(o.name, m.name, d.cut())
		}
	}
	d.nap(10 * tick)
	d.mend()
}

// slowNetwork makes the network slow for a while.
func (d *director) slowNetwork() {
	slow := []time.Duration{100 * time.Millisecond, time.Second, 3 * time.Second}[d.rng.IntN(3)]
	d.note("slow: up to %v", slow)
	d.net.setSlow(slow)
	d.nap(8 * tick)
	d.net.setSlow(quick)
}

// crash ends a node without warning.
func (d *director) crash() {
	m := d.some()
	d.moment()
	d.ends(m)
	d.nap(8 * tick)
	d.starts(m)
}

// crashOften lets a node crash again soon after each start.
func (d *director) crashOften() {
	m := d.some()
	for range 3 {
		d.moment()
		d.ends(m)
		d.nap(tick)
		d.starts(m)
	}
}

func (d *director) ends(m *machine) {
	silent, arrives := d.chance(2), d.chance(2)
	d.note("crash: %s, silently %v, arrives %v", m.name, silent, arrives)
	m.crash(silent, arrives)
	if d.chance(3) {
		// In the middle of writing its file.
		d.must(os.WriteFile(filepath.Join(m.dir, ".config.json."+rand.Text()), []byte("{"), 0o600))
	}
}

// starts starts a node, if it does not run.
func (d *director) starts(m *machine) {
	if m.running() != nil {
		return
	}
	if err := m.start(); err != nil {
		d.fail("%s does not start: %v", m.name, err)
	}
}

// restart ends a node as an operator does, and starts it again.
func (d *director) restart() {
	m := d.some()
	d.moment()
	d.note("restart: %s", m.name)
	m.stop()
	d.nap(5 * tick)
	d.starts(m)
}

// allCrash lets all nodes crash, and start again in some order.
func (d *director) allCrash() {
	d.moment()
	d.note("all crash")
	all := d.all()
	for _, m := range all {
		d.ends(m)
		if d.chance(2) {
			d.nap(3 * tick)
		}
	}
	d.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, m := range all {
		d.nap(6 * tick)
		d.starts(m)
	}
}

// fullDisk lets a node's file not be written for a while.
func (d *director) fullDisk() {
	m := d.some()
	if m.running() == nil {
		return
	}
	d.note("disk full: %s", m.name)
	d.setAway(m, true)
	d.must(os.Rename(m.dir, m.dir+".away"))
	d.nap(6 * tick)
	d.must(os.Rename(m.dir+".away", m.dir))
	time.Sleep(6 * tick) // it is tried again after five
	d.setAway(m, false)
}

func (d *director) setAway(m *machine, on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.away = on
}

// mend makes the network whole.
func (d *director) mend() {
	for _, a := range d.all() {
		for _, b := range d.all() {
			if a != b {
				d.net.cut(a.name, b.name, whole)
			}
		}
	}
	d.net.setSlow(quick)
}

// settle waits until all is well, and looks at everything.
func (d *director) settle() {
	all := d.all()
	for _, m := range all {
		d.starts(m)
	}
	well := func() bool {
		var first raftstore.Position
		for i, m := range all {
			p := m.running()
			if p == nil || !p.store().Current() || len(p.store().Status().Voters) != len(all) {
				return false
			}
			at := p.store().Position()
			if i == 0 {
				first = at
			}
			if at.Index != first.Index || at.Hash != first.Hash {
				return false
			}
		}
		return true
	}
	time.Sleep(12 * tick) // what is still under way arrives
	if !d.within(90*tick, well) {
		for _, m := range all {
			if p := m.running(); p != nil {
				d.fail("%s is not well: current %v, %+v, %+v", m.name, p.store().Current(), p.store().Status(), p.store().Position())
			} else {
				d.fail("%s does not run", m.name)
			}
		}
		return
	}
	now := time.Now()
	for _, m := range all {
		s := m.running().store().State()
		d.observe(m, s, "serves")
		file, err := raftstore.LoadState(m.dir)
		d.must(err)
		d.observe(m, file, "holds")
		for k, c := range cells(s) {
			d.history.add(100, op{Kind: "read", Key: k}, answer{Cell: c}, now, now)
		}
		for i := range mailboxes {
			if id := fmt.Sprintf("mbx-%032x", i); s.Mailboxes[id].ID == "" {
				d.history.add(100, op{Kind: "read", Key: "mailbox/" + id}, answer{}, now, now)
			}
		}
	}
}
