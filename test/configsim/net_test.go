package configsim

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// network joins machines by connections that keep the order of what is sent, as TCP does,
// and nothing else: what is sent arrives late, or never, or the connection breaks.
// Each direction between two machines can be cut by itself.
type network struct {
	mu        sync.Mutex
	rng       *rand.Rand
	cuts      map[[2]string]cut    // from one machine to another
	breaks    map[[2]string]int    // how often connections between two machines were broken, under sorted names
	slow      time.Duration        // greatest delay
	listeners map[string]*listener // by machine
	down      map[string]bool      // machines that do not even refuse
	wires     map[*wire]bool
	changed   chan struct{} // closed and replaced when cuts, breaks or processes change
	trap      *trap
}

// cut is what happens to what one machine sends to another.
type cut int

const (
	whole   cut = iota
	dropped     // it vanishes
	refused     // it is answered: connections break and are refused
)

func (c cut) String() string { return [...]string{"whole", "dropped", "refused"}[c] }

const quick = 4 * time.Millisecond

// again is how long it takes until what was lost while the network was cut is sent anew.
const again = 200 * time.Millisecond

func newNetwork(rng *rand.Rand) *network {
	return &network{rng: rng, cuts: map[[2]string]cut{}, breaks: map[[2]string]int{}, slow: quick, listeners: map[string]*listener{},
		down: map[string]bool{}, wires: map[*wire]bool{}, changed: make(chan struct{})}
}

// endpoint is a process as the network knows it: one run of a machine.
type endpoint struct {
	machine string
	node    *process
	ended   bool // network.mu
	silent  bool // it ended without a word: nothing that is sent to it is answered
}

// trap goes off in the middle of a change: when a machine sends, for the nth time, a
// packet that holds a command, or its answer to one.
type trap struct {
	machine string
	answers bool
	left    int
	armed   bool // a packet that holds a command has arrived
	sprung  chan struct{}
}

// A packet of so many octets holds a command: heartbeats and answers are shorter.
const holdsCommand = 330

func (n *network) set(t *trap) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trap = t
}

// sent and arrived look after the trap; n.mu is held.
func (n *network) sent(machine string, octets int) {
	t := n.trap
	if t == nil || t.machine != machine || t.answers && !t.armed || !t.answers && octets < holdsCommand {
		return
	}
	t.armed = false
	if t.left--; t.left < 0 {
		close(t.sprung)
		n.trap = nil
	}
}

func (n *network) arrived(machine string, octets int) {
	if t := n.trap; t != nil && t.machine == machine && octets >= holdsCommand {
		t.armed = true
	}
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (n *network) delay() time.Duration { // n.mu is held
	return time.Duration(n.rng.Int64N(int64(n.slow))) + time.Microsecond
}

func (n *network) how(from, to string) cut {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[[2]string{from, to}]
}

// notify wakes everyone who waits for the network; n.mu is held.
func (n *network) notify() {
	close(n.changed)
	n.changed = make(chan struct{})
	for w := range n.wires {
		w.poke()
	}
}

// cut cuts a direction, or mends it. What a refusal breaks is broken for good.
func (n *network) cut(from, to string, c cut) {
	n.mu.Lock()
	n.cuts[[2]string{from, to}] = c
	n.notify()
	n.mu.Unlock()
	if c == refused {
		n.breakBetween(from, to)
	}
}

// setSlow sets the greatest delay.
func (n *network) setSlow(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = d
}

// breakBetween breaks all connections between two machines.
func (n *network) breakBetween(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.breaks[pair(a, b)]++
	for w := range n.wires {
		if pair(w.from.machine, w.to.machine) == pair(a, b) {
			w.fail(syscall.ECONNRESET)
			delete(n.wires, w)
		}
	}
	n.notify()
}

// end ends a process. Silently: as if its machine had lost power, nobody is told. If
// arrives, what it has sent still arrives.
func (n *network) end(e *endpoint, silent, arrives bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e.ended, e.silent = true, silent
	n.down[e.machine] = silent
	for w := range n.wires {
		switch {
		case w.to == e && silent:
			w.deafen()
		case w.to == e:
			w.fail(syscall.ECONNRESET)
			delete(n.wires, w)
		case w.from == e:
			w.finish(silent, arrives)
		}
	}
	n.notify()
}

// begin lets a machine answer again: what others had sent to its earlier processes is
// refused.
func (n *network) begin(machine string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down[machine] = false
	for w := range n.wires {
		if w.from.ended && w.from.machine == machine || w.to.ended && w.to.machine == machine {
			w.fail(syscall.ECONNRESET)
			delete(n.wires, w)
		}
	}
	n.notify()
}

// crosses waits as long as a packet takes from one process to another; an error says
// that the connection is lost, or that ctx ended first.
func (n *network) crosses(ctx context.Context, from, to *endpoint) error {
	n.mu.Lock()
	broken, d, lost := n.breaks[pair(from.machine, to.machine)], n.delay(), false
	n.mu.Unlock()
	for {
		n.mu.Lock()
		c, changed := n.cuts[[2]string{from.machine, to.machine}], n.changed
		reset := n.breaks[pair(from.machine, to.machine)] != broken || from.ended || to.ended && !to.silent || to.ended && !n.down[to.machine]
		silent := to.ended
		n.mu.Unlock()
		if reset {
			return syscall.ECONNRESET
		}
		if c == whole && !silent {
			if lost {
				d = again
			}
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			n.mu.Lock()
			ended := to.ended
			n.mu.Unlock()
			if !ended {
				return nil
			}
			continue
		}
		lost = true
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// connect finds the process at a machine: what a TCP and a TLS handshake do.
func (n *network) connect(ctx context.Context, from *endpoint, machine string) (*listener, error) {
	n.mu.Lock()
	there, back := n.cuts[[2]string{from.machine, machine}], n.cuts[[2]string{machine, from.machine}]
	down, d, ended := n.down[machine], n.delay()+n.delay(), from.ended
	n.mu.Unlock()
	switch {
	case ended:
		return nil, net.ErrClosed
	case there == refused || back == refused:
		return nil, syscall.ECONNREFUSED
	case there == dropped || back == dropped || down:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[machine]
	if l == nil || l.of.ended {
		return nil, syscall.ECONNREFUSED
	}
	return l, nil
}

// listener takes the connections to one process.
type listener struct {
	of     *endpoint
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func (n *network) listen(of *endpoint) *listener {
	l := &listener{of: of, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[of.machine] = l
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *listener) Addr() net.Addr { return address(l.of.machine) }

var errHandshake = errors.New("no protocol agreed")

// dial connects a process to one at another machine. admit is asked whether both ends take each
// other for members of one epoch.
func (n *network) dial(ctx context.Context, from *endpoint, machine string, admit func(*process) bool) (net.Conn, error) {
	l, err := n.connect(ctx, from, machine)
	if err != nil {
		return nil, err
	}
	if !admit(l.of.node) {
		return nil, errHandshake
	}
	there, back := n.newWire(from, l.of), n.newWire(l.of, from)
	ours, theirs := &conn{in: back, out: there}, &conn{in: there, out: back}
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		err = syscall.ECONNREFUSED
	case <-ctx.Done():
		err = ctx.Err()
	}
	ours.Close()
	theirs.Close()
	return nil, err
}
