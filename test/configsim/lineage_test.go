package configsim

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing/synctest"
	"time"

	"msgw/raftstore"
)

// lineage is what a node says of where its configuration stands.
type lineage struct {
	line      raftstore.Line
	renounced bool
	you       string // the server id that it knows the asker by
}

// keepLineage does what a node does to follow the configuration where others went on
// without it.
func (p *process) keepLineage() {
	for {
		select {
		case <-time.After(2 * tick):
		case <-p.dead:
			return
		}
		if at, why := p.newer(); at != "" {
			p.rejoin(at, why)
		}
	}
}

// newer returns a site at which this node has to rejoin, and why.
func (p *process) newer() (at, why string) {
	s := p.state()
	if p.store().Epoch() != s.Epoch {
		return "", ""
	}
	own := s.Line()
	for _, name := range s.Sites() {
		if name == p.m.node.Name {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*tick)
		l, err := call(ctx, p, name, false, func(q *process) (lineage, error) {
			return lineage{q.state().Line(), q.store().Renounced() != nil, q.state().Nodes[p.m.node.Name].ID}, nil
		})
		cancel()
		if err != nil || l.renounced {
			continue
		}
		switch own.Relate(l.line) {
		case raftstore.Ancestor:
			return name, "it went on in another epoch"
		case raftstore.Fork:
			p.m.w.fail("%s is of epoch %s at %d, %s of %s at %d: a fork that nobody made", p.m.name, own.Epoch, own.Index, name, l.line.Epoch, l.line.Index)
		case raftstore.Same:
			if p.store().Renounced() != nil {
				return name, "it renounced"
			}
			if l.line.Index >= own.Index && l.you != "" && l.you != p.m.serverID() {
				return name, "it was set back to before it rejoined"
			}
		}
	}
	return "", ""
}

// rejoin makes the node a member of the lineage that a site has.
func (p *process) rejoin(at, why string) {
	ren, err := p.store().Renounce(why)
	if err != nil {
		return // it recovers, or is being closed
	}
	s := p.state()
	ctx, cancel := context.WithTimeout(context.Background(), 10*tick)
	defer cancel()
	state, err := call(ctx, p, at, false, func(q *process) (*raftstore.State, error) { return q.readmit(p.m.node.Name, ren, s.Revision) })
	if err != nil || p.isDead() {
		return
	}
	p.m.w.mu.Lock()
	p.m.id = ren.New
	p.m.w.count("rejoined")
	p.m.w.mu.Unlock()
	// It fails if its disk does, or if an earlier request of its was answered only now: it
	// is tried again.
	if p.store().Rejoin(raftstore.Rejoin{ID: ren.New, State: state}) != nil {
		p.m.w.mu.Lock()
		p.m.w.count("not rejoined")
		p.m.w.mu.Unlock()
	}
}

// readmit takes a node in again. If that one was the only other voter, this one goes on
// alone first.
func (p *process) readmit(name string, ren raftstore.Renunciation, revision uint32) (*raftstore.State, error) {
	if p.store().Renounced() != nil {
		return nil, errors.New("it has renounced itself")
	}
	voters := slices.Sorted(slices.Values(p.store().Status().Voters))
	both := slices.Sorted(slices.Values([]string{name, p.m.node.Name}))
	ctx, cancel := context.WithTimeout(context.Background(), 20*tick)
	defer cancel()
	if p.store().Epoch() != p.state().Epoch { // a recovery that has begun is gone on with
		if err := p.store().Recover(ctx, ""); err != nil {
			return nil, err
		}
	}
	if slices.Equal(voters, both) {
		for range 40 {
			if !p.store().Status().Quorum || p.isDead() {
				break
			}
			time.Sleep(tick / 4)
		}
		if err := p.store().Recover(ctx, name+" votes no more"); err != nil && !errors.Is(err, raftstore.ErrQuorum) {
			return nil, err
		}
		p.m.w.mu.Lock()
		p.m.w.count("went on alone")
		p.m.w.mu.Unlock()
	}
	node := p.state().Nodes[name]
	if _, err := p.store().Propose(ctx, raftstore.RejoinNode{Name: name, Old: node.ID, New: ren.New, Revision: revision}); err != nil {
		return nil, err
	}
	return p.state(), nil
}

// loseSite loses one of two sites. The other one is told to go on alone, and then the lost
// one comes back, or a new machine takes its place.
func (d *director) loseSite() {
	all := d.all()
	if len(all) != 2 {
		return // with a witness they go on, and what a lone survivor lacks is lost
	}
	lost, left := all[0], all[1]
	if d.chance(2) {
		lost, left = left, lost
	}
	if p := left.running(); p == nil || !p.store().Current() {
		return // what it lacks, as after its disk was put back, would be lost with the other one
	}
	d.moment()
	d.ends(lost)
	d.starts(left)
	// An operator waits until it is certain, and tries again if that is needed.
	ok := d.within(60*tick, func() bool {
		p := left.running()
		switch st := p.store().Status(); {
		case p.store().Renounced() != nil:
			return false
		case st.Quorum:
			return len(st.Voters) == 1 // it did already
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*tick)
		defer cancel()
		return p.store().Recover(ctx, lost.name+" is gone") == nil
	})
	if !ok {
		// It may have been about to rejoin at the one that is lost.
		if left.running().store().Renounced() == nil {
			d.fail("%s does not go on alone: %+v", left.name, left.running().store().Status())
		}
		d.starts(lost)
		return
	}
	if d.chance(3) {
		d.note("crash after a recovery: %s", left.name)
		left.crash(true, true)
		d.starts(left)
	}
	if d.chance(2) {
		d.note("lost and found: %s", lost.name)
		d.nap(8 * tick)
		d.starts(lost)
		d.nap(20 * tick)
		return
	}
	d.note("replaced: %s", lost.name)
	d.mu.Lock()
	d.machines = slices.DeleteFunc(d.machines, func(m *machine) bool { return m == lost })
	d.mu.Unlock()
	d.must(os.RemoveAll(lost.dir))
	name := lost.node.Name
	d.within(30*tick, func() bool { return left.running().store().Status().Quorum })
	m := d.newMachine(name, raftstore.Site)
	old := left.running().store().State().Nodes[name]
	d.operator(left, raftstore.AddInvite{Invite: raftstore.Invite{ID: m.name, Role: raftstore.Site, Expires: time.Now().Add(time.Hour), Replaces: name, ReplacesID: old.ID}})
	d.operator(left, raftstore.JoinNode{Invite: m.name, Node: m.node, CA: raftstore.CA{SealedTo: left.running().store().State().Sites()}})
	m.dir = m.fresh()
	d.must(os.Mkdir(m.dir, 0o700))
	d.must(raftstore.Adopt(m.dir, left.running().store().State()))
	d.starts(m)
	if !d.within(60*tick, func() bool { return slices.Contains(left.running().store().Status().Voters, name) }) {
		d.fail("%s took a place, and does not vote", m.name)
	}
}

// setBack puts a machine's disk back to what it was some time ago.
func (d *director) setBack() {
	m := d.some()
	p := m.running()
	if p == nil || len(p.store().Status().Voters) < len(d.all()) {
		return // a node that was set back to when it was alone goes on alone, and may lose what it does
	}
	synctest.Wait()
	copied, id := m.fresh(), m.serverID()
	d.must(copyDir(p.dir, copied))
	d.nap(15 * tick)
	d.moment()
	if p = m.running(); p == nil || len(p.store().Status().Voters) < len(d.all()) {
		return // nobody else could go on
	}
	d.note("set back: %s", m.name)
	d.ends(m)
	d.must(os.RemoveAll(m.dir))
	m.dir = copied
	d.mu.Lock()
	m.served = nil // it serves again what it served then
	m.id = id
	d.mu.Unlock()
	d.nap(5 * tick)
	d.starts(m)
	d.nap(20 * tick)
}
