package configsim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"msgw/raftstore"
)

// client changes the configuration at any node and looks at it.
type client struct {
	*world
	number int
	rng    *rand.Rand
}

// values makes the values of changes, so that each tells which change it came from.
// Mailboxes are made by them too.
type values struct{ last atomic.Uint32 }

func (w *world) newClient(number int) *client {
	return &client{w, number, rand.New(rand.NewPCG(w.seed, uint64(10+number)))}
}

// nap waits up to d; false means that the history is over.
func (c *client) nap(d time.Duration) bool {
	t := time.NewTimer(time.Duration(c.rng.Int64N(int64(d))))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.stop:
		return false
	}
}

func (c *client) run() {
	for c.nap(2 * pace) {
		var up []*process
		for _, m := range c.all() {
			if p := m.running(); p != nil {
				up = append(up, p)
			}
		}
		if len(up) == 0 {
			continue
		}
		p := up[c.rng.IntN(len(up))]
		if c.rng.IntN(10) < 3 {
			c.look(p)
		} else {
			c.change(p)
		}
	}
}

// someMailbox returns the id of a mailbox that somebody made, or tried to.
func (c *client) someMailbox() string {
	return fmt.Sprintf("mbx-%032x", c.rng.IntN(mailboxes))
}

const mailboxes = 4

func (c *client) change(p *process) {
	number := c.values.last.Add(1)
	o := op{Value: fmt.Sprint("v", number)}
	var name string
	var m raftstore.Mailbox
	s := p.store().State()
	switch k := c.rng.IntN(10); {
	case k < 3:
		sites := s.Sites()
		name = sites[c.rng.IntN(len(sites))]
		number += 1 // 1 is what nodes join with
		o.Kind, o.Key, o.Value = "weight", "node/"+name, fmt.Sprint(number)
	case k < 5:
		name = c.someMailbox()
		o.Kind, o.Key = "create", "mailbox/"+name
	case k < 8:
		name = c.someMailbox()
		var ok bool
		if m, ok = s.Mailboxes[name]; !ok {
			o.Kind, o.Key = "create", "mailbox/"+name
			break
		}
		o.Kind, o.Key, o.Version = "keys", "mailbox/"+name, m.Version
	default:
		name = c.someMailbox()
		o.Kind, o.Key, o.Value = "policy", "mailbox/"+name, []string{"", "available", "strict"}[c.rng.IntN(3)]
	}
	c.propose(p, time.Duration(2+c.rng.IntN(7))*tick, o, o.change(name, number, m))
}

// propose makes a change and checks what is said of it.
func (c *client) propose(p *process, patience time.Duration, o op, ch raftstore.Change) error {
	c.mu.Lock()
	epoch := p.state().Epoch
	before := c.history.last[epoch]
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	call := time.Now()
	index, err := p.store().Propose(ctx, ch)
	if p.crashed.Load() {
		err = raftstore.ErrUnknown // who asked got no answer
	}
	ret := time.Now()
	var rej *raftstore.Rejection
	committed := errors.As(err, &rej) || index > 0
	if err == nil {
		c.inFile(p, index)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.history
	switch {
	case errors.Is(err, raftstore.ErrNoQuorum) && errors.Is(err, raftstore.ErrUnknown):
		c.failLocked("%+v: both not made and unknown: %v", o, err)
	case errors.Is(err, raftstore.ErrNoQuorum):
		c.count("not made")
		if strings.ContainsAny(o.Value[:min(1, len(o.Value))], "v0123456789") {
			h.refused[o.Value] = true
		}
		return err
	case errors.Is(err, raftstore.ErrUnknown):
		c.count("unknown")
		h.add(c.number, o, answer{Unknown: true}, call, ret)
		return err
	case !committed:
		c.failLocked("%+v: %v", o, err)
		return err
	}
	a := answer{}
	if rej != nil {
		c.count("rejected")
		a.Code = rej.Code
	} else {
		c.count("made")
	}
	h.add(c.number, o, a, call, ret)
	if p.state().Epoch != epoch {
		return err // in which of them it was made is not said
	}
	at := place{epoch, index}
	if other, ok := h.at[at]; ok {
		c.failLocked("%+v and %+v are both said to be command %d", o, other, index)
	}
	if index <= before {
		c.failLocked("%+v is said to be command %d, and %d was known before it was asked for", o, index, before)
	}
	h.at[at], h.last[epoch] = o, max(h.last[epoch], index)
	return err
}

// inFile checks that a change that is said to be made is served, and in the node's file.
func (c *client) inFile(p *process, index uint64) {
	if s := p.store().State(); s.Index < index {
		c.fail("%s says that command %d is made and serves %d", p.m.name, index, s.Index)
	}
	c.mu.Lock()
	away := p.m.away
	c.mu.Unlock()
	if away || p.isDead() {
		return
	}
	s, err := raftstore.LoadState(p.dir)
	if err != nil {
		c.fail("%s: %v", p.m.name, err)
	} else if s.Index < index {
		c.fail("%s says that command %d is made, its file holds %d", p.m.name, index, s.Index)
	}
}

// look reads at a node that says it is current. Five ticks ago the leader may have
// confirmed that, so what was made since then may be missing, and nothing else.
func (c *client) look(p *process) {
	current := p.store().Current()
	now := time.Now()
	if !current || p.isDead() {
		return
	}
	s := p.store().State()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count("read")
	all := cells(s)
	keys := []string{"mailbox/" + c.someMailbox()}
	for _, name := range s.Sites() {
		keys = append(keys, "node/"+name)
	}
	for _, k := range slices.Compact(keys) {
		c.history.add(c.number, op{Kind: "read", Key: k}, answer{Cell: all[k]}, now.Add(-5*tick), now)
	}
}
