package node

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"msgw/internal/health"
	"msgw/internal/peer"
	"msgw/raftstore"
)

// newHealth makes the monitor, and has it look at once where a connection to another node
// breaks.
func (n *Node) newHealth() *health.Monitor {
	m := health.New(health.Options{Timing: n.cfg.Health.timing(), Anchors: n.cfg.Health.Anchors, Prober: prober{n}, Targets: n.targets,
		OwnChanged: n.tellOthers, Log: n.log})
	n.dialer.SetLost(func(id string) {
		if node, ok := n.store.State().NodeByID(id); ok {
			m.Look(node.Name)
		}
	})
	return m
}

// tellTime bounds how long the others are told that there is something new.
const tellTime = 2 * time.Second

// tellOthers asks the other nodes to look at this one: what it says of itself has changed.
// Who cannot be told finds out at its next pulse.
func (n *Node) tellOthers() {
	for _, node := range n.store.State().SortedNodes() {
		if node.Name == n.id.Name {
			continue
		}
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), tellTime)
			defer cancel()
			if err := n.peers.Call(ctx, peer.Status, node.ID, "/look", struct{}{}, nil); err != nil {
				n.log.Debug("not told that there is news", "node", node.Name, "err", err)
			}
		}()
	}
}

// lookAt looks at the node that asks for it.
func (n *Node) lookAt(ctx context.Context, _ struct{}) (struct{}, error) {
	id, err := n.asker(ctx)
	if err == nil {
		n.health.Look(id.Node)
	}
	return struct{}{}, err
}

// targets are the nodes that health watches.
func (n *Node) targets() []health.Target {
	var ts []health.Target
	for _, node := range n.store.State().SortedNodes() {
		t := health.Target{Name: node.Name, Self: node.Name == n.id.Name, Site: node.Role == raftstore.Site, Host: node.Host}
		if t.Site {
			if t.Self {
				// The public address may not be reachable from the inside.
				t.SMTP, t.DNS = []string{reachable(n.cfg.Listen.SMTP)}, []string{reachable(n.cfg.Listen.DNS)}
			} else {
				for _, a := range append(addrs(node.V4), addrs(node.V6)...) {
					t.SMTP = append(t.SMTP, net.JoinHostPort(a.String(), strconv.Itoa(node.SMTPPort)))
					t.DNS = append(t.DNS, net.JoinHostPort(a.String(), strconv.Itoa(node.DNSPort)))
				}
			}
		}
		ts = append(ts, t)
	}
	return append(ts, n.exchangeTargets()...)
}

// reachable turns the address of a listener into one to connect to.
func reachable(listen string) string {
	ap, err := netip.ParseAddrPort(listen)
	if err != nil || !ap.Addr().IsUnspecified() {
		return listen
	}
	if ap.Addr().Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ap.Port()).String()
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), ap.Port()).String()
}

// prober is the health.Prober of this node.
type prober struct{ n *Node }

// Report asks a node about itself, and compares configurations on the way.
func (p prober) Report(ctx context.Context, name string) (health.Report, error) {
	machine := p.n.store.State().Nodes[name].SealTo
	r, err := p.n.ask(ctx, name)
	if err != nil {
		return health.Report{}, err
	}
	p.n.told.note(name, machine, r.Serves)
	return r.Report, nil
}

func (p prober) SMTP(ctx context.Context, address, host string) error {
	return health.ProbeSMTP(ctx, address, host, p.n.host())
}

func (p prober) DNS(ctx context.Context, address string) error {
	return health.ProbeDNS(ctx, address, p.n.store.State().Zone.Name)
}

// Greeting waits for the first line of an SMTP server.
func (p prober) Greeting(ctx context.Context, address string) error {
	return health.ProbeGreeting(ctx, address)
}

// Anchor connects to a place outside of the appliance.
func (p prober) Anchor(ctx context.Context, address string) error {
	return health.ProbeAnchor(ctx, address)
}
