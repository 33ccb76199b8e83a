package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"msgw/internal/ca"
	"msgw/internal/durable"
	"msgw/internal/peer"
	"msgw/raftstore"
)

// members is the peer.Membership of this node: the configuration it serves from,
// and its own peer certificate.
type members struct {
	n *Node

	mu    sync.Mutex
	state func() *raftstore.State
	epoch func() raftstore.Epoch
	root  *x509.Certificate
	cert  *tls.Certificate
}

func openMembers(n *Node) (*members, error) {
	s, err := raftstore.LoadState(n.cfg.State)
	if err != nil {
		return nil, operatorError(err, lostHint)
	}
	m := &members{n: n, state: func() *raftstore.State { return s }, epoch: func() raftstore.Epoch { return s.Epoch }}
	if m.root, err = ca.ParseCertificate(s.CA.Certificate); err != nil {
		return nil, fmt.Errorf("cluster CA: %w", err)
	}
	if m.cert, err = n.id.peerCertificate(n.cfg.State, s.CA.Certificate); err == nil {
		return m, nil
	}
	if n.witness {
		return nil, operatorError(fmt.Errorf("peer certificate: %w", err), lostHint)
	}
	n.log.Error("the peer certificate cannot be read; a new one is made", "err", err)
	return m, m.issue(s)
}

// follow reads the configuration from the store from now on.
func (m *members) follow(store *raftstore.Store) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.epoch = store.State, store.Epoch
}

func (m *members) current() *raftstore.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state()
}

func (m *members) Root() *x509.Certificate { return m.root }

// Epoch is that of the store: ahead of the configuration's while a recovery is under way.
func (m *members) Epoch() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.epoch().String()
}

func (m *members) Certificate() *tls.Certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cert
}

func (m *members) Member(id string) bool {
	_, ok := m.current().NodeByID(id)
	return ok
}

func (m *members) Resolve(id string) (name, addr string, err error) {
	if node, ok := m.current().NodeByID(id); ok {
		return node.Name, node.Peer, nil
	}
	return "", "", fmt.Errorf("no member has the server id %s", id)
}

// renew replaces the peer certificate in good time. A site issues it itself; a
// witness asks any site.
func (m *members) renew(ctx context.Context) {
	cert := m.Certificate()
	now := time.Now()
	if now.Before(cert.Leaf.NotAfter.Add(-ca.RenewBefore)) {
		return
	}
	n, err := m.n, error(nil)
	if n.witness {
		var pem string
		if pem, err = n.askForCertificate(ctx); err == nil {
			err = m.install(pem, m.current())
		}
	} else {
		err = m.issue(m.current())
	}
	if err != nil {
		n.log.Error("peer certificate not renewed; it is tried again", "until", cert.Leaf.NotAfter, "err", err)
		return
	}
	n.log.Info("peer certificate renewed", "until", m.Certificate().Leaf.NotAfter)
}

// issue makes a site's own peer certificate.
func (m *members) issue(s *raftstore.State) error {
	id := m.n.id
	a, err := id.authority(s)
	if err != nil {
		return err
	}
	pem, err := a.IssuePeer(ca.Identity{Cluster: id.Cluster, Node: id.Name, ID: id.serverID()}, id.peer.Public(), time.Now())
	if err != nil {
		return err
	}
	return m.install(pem, s)
}

// install keeps a new peer certificate and uses it from now on.
func (m *members) install(pem string, s *raftstore.State) error {
	if err := durable.ReplaceFile(filepath.Join(m.n.cfg.State, peerCertFile), []byte(pem)); err != nil {
		return err
	}
	cert, err := m.n.id.peerCertificate(m.n.cfg.State, s.CA.Certificate)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cert = cert
	return nil
}

// authority opens the cluster's CA with this node's key.
func (n *Node) authority() (*ca.Authority, error) { return n.id.authority(n.store.State()) }

func (id *identity) authority(s *raftstore.State) (*ca.Authority, error) {
	key, err := id.node.OpenSecret(s.CA.Key)
	if err != nil {
		return nil, fmt.Errorf("cluster CA: %w", err)
	}
	return ca.Open(s.CA.Certificate, key)
}

// raftStream carries raft over peer connections.
type raftStream struct {
	net.Listener
	dialer  *peer.Dialer
	members *members
}

// DialContext connects to the member with a peer address.
func (r *raftStream) DialContext(ctx context.Context, addr raft.ServerAddress) (net.Conn, error) {
	nodes := r.members.current().SortedNodes()
	i := slices.IndexFunc(nodes, func(n raftstore.Node) bool { return n.Peer == string(addr) })
	if i < 0 {
		return nil, fmt.Errorf("no member has the peer address %s", addr)
	}
	return r.dialer.Dial(ctx, peer.Raft, nodes[i].ID)
}
