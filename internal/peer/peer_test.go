package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/ca"
)

type cluster struct {
	a    *ca.Authority
	root *x509.Certificate
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	p, key, err := ca.New("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(p, key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := ca.ParseCertificate(p)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{a, root}
}

// node is a Membership.
type node struct {
	root *x509.Certificate
	cert tls.Certificate

	epoch   string
	mu      sync.Mutex
	members map[string]string
}

func (n *node) Root() *x509.Certificate       { return n.root }
func (n *node) Epoch() string                 { return n.epoch }
func (n *node) Certificate() *tls.Certificate { return &n.cert }
func (n *node) Member(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.members[id]
	return ok
}
func (n *node) Resolve(id string) (name, addr string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return id, n.members[id], nil
}

func (c *cluster) node(t *testing.T, id string) *node {
	t.Helper()
	k, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.a.IssuePeer(ca.Identity{Cluster: "c1", Node: id, ID: id}, k.Public(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.ParseCertificate(p)
	if err != nil {
		t.Fatal(err)
	}
	return &node{root: c.root, epoch: "1-a", members: map[string]string{},
		cert: tls.Certificate{Certificate: [][]byte{leaf.Raw, c.root.Raw}, PrivateKey: k}}
}

const testJoinTime = 2 * time.Second

// serve runs n's server with an HTTP handler on every protocol that answers its name.
func serve(t *testing.T, n *node) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(n, l.Addr().String(), slog.New(slog.DiscardHandler))
	s.joinTime = testJoinTime
	var wg sync.WaitGroup
	var hs []*http.Server
	for _, p := range []Protocol{Raft, RPC, Status, Join} {
		h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/refuse" {
				http.Error(w, "not now", http.StatusConflict)
				return
			}
			json.NewEncoder(w).Encode(p.name)
		})}
		hs = append(hs, h)
		pl := s.Listener(p)
		wg.Go(func() { h.Serve(pl) })
	}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		for _, h := range hs {
			h.Close()
		}
		cancel()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestMembersTalk(t *testing.T) {
	t.Parallel()
	c, other := newCluster(t), newCluster(t)
	b := c.node(t, "b")
	addr := serve(t, b)
	b.members["a"] = ""
	b.members["b"] = addr

	call := func(n *node, p Protocol, path string) (string, error) {
		n.members["b"] = addr
		n.members["wrong"] = addr
		cl := NewClient(NewDialer(n))
		defer cl.Close()
		var out string
		err := cl.Call(t.Context(), p, "b", path, nil, &out)
		return out, err
	}
	a := c.node(t, "a")
	for _, p := range []Protocol{RPC, Status} {
		if got, err := call(a, p, "/"); err != nil || got != p.name {
			t.Errorf("%s: %q, %v", p.name, got, err)
		}
	}
	var ref *Refusal
	if _, err := call(a, RPC, "/refuse"); !errors.As(err, &ref) || ref.Code != 409 || ref.Text != "not now" {
		t.Errorf("refusal: %v", err)
	}

	old := c.node(t, "a")
	old.epoch = "0-b"
	if _, err := call(old, RPC, "/"); !errors.Is(err, ErrNotSent) {
		t.Errorf("another epoch got through: %v", err)
	}
	if got, err := call(old, Status, "/"); err != nil || got != Status.name {
		t.Errorf("status of another epoch: %q, %v", got, err)
	}
	for name, n := range map[string]*node{"not a member": c.node(t, "x"), "another CA": other.node(t, "a")} {
		n.root = c.root
		if _, err := call(n, RPC, "/"); err == nil {
			t.Errorf("%s got through", name)
		}
	}
	distrusting := c.node(t, "a")
	distrusting.root = other.root
	if _, err := call(distrusting, RPC, "/"); !errors.Is(err, ErrNotSent) {
		t.Errorf("a server of another CA was talked to: %v", err)
	}
	if conn, err := NewDialer(a).Dial(t.Context(), RPC, "wrong"); err == nil {
		conn.Close()
		t.Error("b was taken for another node")
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	c, other := newCluster(t), newCluster(t)
	b := c.node(t, "b")
	addr := serve(t, b)
	var out string
	if err := Post(t.Context(), JoinClient(addr, ca.Fingerprint(c.root)), "https://join/", nil, &out); err != nil || out != Join.name {
		t.Errorf("%q, %v", out, err)
	}
	if err := Post(t.Context(), JoinClient(addr, ca.Fingerprint(other.root)), "https://join/", nil, &out); !errors.Is(err, ErrNotSent) {
		t.Errorf("another cluster was talked to: %v", err)
	}
	// Without a client certificate nothing but joining is offered.
	for _, protos := range [][]string{{Status.alpn("")}, {RPC.alpn("1-a")}, {Join.alpn(""), Status.alpn("")}, nil} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: protos})
		if err != nil {
			continue
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if b, _ := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("%v without a certificate: %q", protos, b)
		}
		conn.Close()
	}
}

// Who has no certificate gets a small share of the port for a short time, whatever
// he does with it; members are served meanwhile.
func TestStrangersHoldLittle(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	b := c.node(t, "b")
	addr := serve(t, b)
	b.members["a"] = ""
	a := c.node(t, "a")
	a.members["b"] = addr

	stranger := func() (*tls.Conn, error) {
		return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Join.alpn("")}})
	}
	closed := func(conn net.Conn, within time.Duration) bool {
		conn.SetReadDeadline(time.Now().Add(within))
		_, err := conn.Read(make([]byte, 1))
		var ne net.Error
		return err != nil && !(errors.As(err, &ne) && ne.Timeout())
	}
	var first *tls.Conn
	for range maxJoining {
		conn, err := stranger()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if first == nil {
			first = conn
		}
	}
	if conn, err := stranger(); err == nil {
		defer conn.Close()
		if !closed(conn, 5*time.Second) {
			t.Errorf("more than %d strangers are served", maxJoining)
		}
	}
	cl := NewClient(NewDialer(a))
	defer cl.Close()
	var out string
	if err := cl.Call(t.Context(), RPC, "b", "/", nil, &out); err != nil {
		t.Errorf("a member is not served: %v", err)
	}
	if closed(first, 10*time.Millisecond) {
		t.Fatal("closed at once")
	}
	if !closed(first, 10*testJoinTime) {
		t.Error("a silent stranger stays")
	}
	if conn, err := stranger(); err != nil || closed(conn, 50*time.Millisecond) {
		t.Errorf("no room again: %v", err)
	} else {
		conn.Close()
	}
}

// An error that a person reads names the address, not the inside of a call.
func TestErrorsAreForPeople(t *testing.T) {
	t.Parallel()
	a := newCluster(t).node(t, "a")
	a.members["b"] = "127.0.0.1:1"
	cl := NewClient(NewDialer(a))
	defer cl.Close()
	err := cl.Call(t.Context(), RPC, "b", "/", nil, nil)
	if !errors.Is(err, ErrNotSent) || strings.Contains(err.Error(), "https://") {
		t.Errorf("got %v", err)
	}
}
