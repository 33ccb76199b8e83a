package node

import (
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"msgw/internal/ca"
	"msgw/internal/durable"
)

// made returns a node as init leaves it, with its memberships open.
func made(t *testing.T) *members {
	t.Helper()
	cfg := &Config{Name: "a", State: filepath.Join(t.TempDir(), "a"),
		Listen: Listen{Peer: "127.0.0.1:8451"}, Public: Public{IPv4: []string{"127.0.0.1"}, SMTPPort: 25, DNSPort: 53}}
	if err := Init(cfg, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
		t.Fatal(err)
	}
	id, err := loadIdentity(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	m, err := openMembers(&Node{cfg: cfg, id: id, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A site renews its peer certificate by itself: no leader and no peer is asked.
func TestPeerCertificateRenews(t *testing.T) {
	t.Parallel()
	m := made(t)
	first := m.Certificate().Leaf
	m.renew(t.Context())
	if !m.Certificate().Leaf.Equal(first) {
		t.Error("a fresh certificate was renewed")
	}

	// As it will be two months from now.
	a, err := m.n.id.authority(m.current())
	if err != nil {
		t.Fatal(err)
	}
	id := ca.Identity{Cluster: m.n.id.Cluster, Node: m.n.id.Name, ID: m.n.id.ID}
	old, err := a.IssuePeer(id, m.n.id.peer.Public(), time.Now().Add(-ca.Life+ca.RenewBefore-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(m.n.cfg.State, peerCertFile)
	if err := durable.ReplaceFile(path, []byte(old)); err != nil {
		t.Fatal(err)
	}
	if m, err = openMembers(m.n); err != nil {
		t.Fatal(err)
	}
	before := m.Certificate().Leaf.NotAfter
	m.renew(t.Context())
	if after := m.Certificate().Leaf.NotAfter; !after.After(before.Add(50 * 24 * time.Hour)) {
		t.Errorf("until %v, before %v", after, before)
	}
	if got, err := ca.VerifyPeer(m.Root(), []*x509.Certificate{m.Certificate().Leaf}, time.Now()); err != nil || got != id {
		t.Errorf("%+v, %v", got, err)
	}

	// A certificate that cannot be read is made anew: the key is what counts.
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m, err = openMembers(m.n); err != nil {
		t.Fatal(err)
	}
	if got, err := ca.VerifyPeer(m.Root(), []*x509.Certificate{m.Certificate().Leaf}, time.Now()); err != nil || got != id {
		t.Errorf("after a torn write: %+v, %v", got, err)
	}
}

// What init leaves behind when it fails is nothing, and it touches nothing else.
func TestInitLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a")
	cfg := &Config{Name: "a", State: dir, Listen: Listen{Peer: "0.0.0.0:8451"}} // its peer address is open
	if err := Init(cfg, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err == nil {
		t.Fatal("init without a peer address")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	in := token{Invite: "i", Secret: "s", CA: "c", Peers: []string{"127.0.0.1:8451"}, Role: "site"}
	out, err := parseToken(" " + in.String() + "\n")
	if err != nil || out.Invite != in.Invite || out.Secret != in.Secret || out.CA != in.CA || len(out.Peers) != 1 || out.Role != in.Role {
		t.Errorf("%+v, %v", out, err)
	}
	for _, bad := range []string{"", "msgw-join-1-", "msgw-join-1-!!!", "msgw-join-1-e30", in.String()[4:]} {
		if _, err := parseToken(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
