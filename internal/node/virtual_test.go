package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"msgw/dnsplugin/plugintest"

	"msgw/dnsplugin"
	"msgw/internal/admin"
	"msgw/internal/ca"
	"msgw/internal/health"
	"msgw/internal/peer"
	"msgw/internal/seal"
	"msgw/raftstore"
)

// wires is a network of pipes, so that nodes can live in virtual time: who waits for a
// pipe waits for nothing outside.
type wires struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
}

type pipeListener struct {
	w     *wires
	addr  string
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (w *wires) listen(addr string) net.Listener {
	l := &pipeListener{w: w, addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listeners[addr] = l
	return l
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.w.mu.Lock()
		defer l.w.mu.Unlock()
		delete(l.w.listeners, l.addr)
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr(l.addr) }

type pipeAddr string

func (pipeAddr) Network() string  { return "tcp" }
func (a pipeAddr) String() string { return string(a) }

// pipeConn is a pipe with an address at its other end.
type pipeConn struct {
	net.Conn
	remote pipeAddr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.remote }

// dial connects to a listener; where there is none, the connection is refused.
func (w *wires) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	w.mu.Lock()
	l := w.listeners[addr]
	w.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("%s: %w", addr, syscall.ECONNREFUSED)
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- pipeConn{theirs, "192.0.2.99:1025"}:
		return pipeConn{ours, pipeAddr(addr)}, nil
	case <-l.done:
		return nil, fmt.Errorf("%s: %w", addr, syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Intervals of a node in virtual time. A month of it is more than a test has the time
// for at those of earnest, but for upkeep, certificates and adoption, which keep theirs.
const (
	raftTick    = 30 * time.Second
	healthEvery = 10 * time.Minute
)

// site is a running node: every room of a site, joined as Run joins them, over wires.
type site struct {
	*Node
	t      *testing.T
	w      *wires
	cancel func()
	tasks  tasks
	closes []func() error
}

// config describes the nth site.
func siteConfig(dir string, n int) *Config {
	ip := fmt.Sprintf("192.0.2.%d", n)
	name := fmt.Sprintf("msgw%d", n)
	return &Config{Name: name, State: filepath.Join(dir, name), Public: Public{IPv4: []string{ip}, SMTPPort: 25, DNSPort: 53},
		Listen: Listen{SMTP: ip + ":25", POP3: ip + ":110", POP3S: ip + ":995", DNS: ip + ":53", Peer: ip + ":8451"}}
}

// startSite starts the node of a state directory.
func startSite(t *testing.T, w *wires, cfg *Config) *site {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	id, err := loadIdentity(cfg.State)
	must(err)
	log := slog.New(slog.DiscardHandler)
	n := &Node{cfg: cfg, log: log, version: "test", id: id, metrics: prometheus.NewRegistry()}
	s := &site{Node: n, t: t, w: w}
	n.members, err = openMembers(n)
	must(err)
	n.dialer = peer.NewDialer(n.members)
	n.dialer.Connect = w.dial
	n.peers = peer.NewClient(n.dialer)
	s.closes = append(s.closes, func() error { n.peers.Close(); return nil })
	peers := peer.NewServer(n.members, cfg.Listen.Peer, log)
	stream := &raftStream{Listener: peers.Listener(peer.Raft), dialer: n.dialer, members: n.members}
	n.store, err = raftstore.Open(raftstore.Options{Dir: cfg.State, Name: id.Name, ID: id.ID, Stream: stream, Peers: peerCalls{n}, Log: log, Tick: raftTick})
	must(err)
	s.closes = append(s.closes, n.store.Close)
	n.members.follow(n.store)
	n.drain, err = openDrain(cfg.State)
	must(err)
	n.lineage, err = openLineage(cfg.State)
	must(err)
	n.lineage.every = healthEvery
	n.deriver = seal.NewDeriver(256 << 10)
	closeMail, err := n.openMail()
	must(err)
	s.closes = append(s.closes, closeMail)
	n.drops = newMaildrops(n)
	n.quarantine, err = openQuarantine(n.cfg.State, n.log)
	must(err)
	n.certs, err = n.openCerts()
	must(err)
	n.zone = newZone(n)
	n.zone.look = healthEvery
	n.health = health.New(health.Options{Prober: wireProber{prober{n}, w}, Targets: n.targets, Log: log,
		Timing: health.Timing{Interval: healthEvery, Timeout: time.Minute}})
	n.registerGauges()

	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	run := func(name string, f func(context.Context) error) { s.tasks.run(ctx, cancel, name, f) }
	l := cfg.Listen
	run("peer port", func(ctx context.Context) error { return peers.Serve(ctx, w.listen(l.Peer)) })
	n.servePeers(run, peers)
	run("lineage", func(ctx context.Context) error { return n.keepLineage(ctx, func() { n.dialer.Prune(); peers.Prune() }) })
	run("health", func(ctx context.Context) error { n.health.Run(ctx); return nil })
	run("upkeep", n.upkeep)
	run("certificates", func(ctx context.Context) error { n.certs.Run(ctx); return nil })
	run("zone", n.zone.run)
	run("smtp", func(ctx context.Context) error { return n.smtpServer().Serve(ctx, w.listen(l.SMTP)) })
	run("copies", func(ctx context.Context) error { n.shipper.Run(ctx); return nil })
	run("adoption", func(ctx context.Context) error { n.holder.Run(ctx); return nil })
	copies := fromOther{peers.Listener(peer.Copies), n}
	run("copies of the other site", func(ctx context.Context) error { return n.holder.Serve(ctx, copies) })
	run("pop3", func(ctx context.Context) error { return n.pop3Server().Serve(ctx, w.listen(l.POP3), w.listen(l.POP3S)) })
	return s
}

// stop ends a node and closes its rooms the other way round.
func (s *site) stop() {
	if s == nil || s.closes == nil {
		return // it does not run
	}
	s.t.Helper()
	s.cancel()
	err := s.tasks.wait()
	for i := len(s.closes) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closes[i]())
	}
	s.closes = nil
	if err != nil {
		s.t.Errorf("%s ends: %v", s.id.Name, err)
	}
}

// wireProber is the health.Prober of a node on wires.
type wireProber struct {
	prober
	w *wires
}

// SMTP does what health.ProbeSMTP does, but for the connection.
func (p wireProber) SMTP(ctx context.Context, address, host string) error {
	c, err := p.w.session(ctx, address, &tls.Config{ServerName: host, InsecureSkipVerify: true,
		VerifyConnection: func(st tls.ConnectionState) error { return st.PeerCertificates[0].VerifyHostname(host) }})
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.Quit() // the server hangs up first, which a pipe takes for a failure
	return nil
}

// Greeting does what health.ProbeGreeting does.
func (p wireProber) Greeting(ctx context.Context, address string) error {
	return p.SMTP(ctx, address, "")
}

// DNS is answered where the node lives: its handler has no port here.
func (p wireProber) DNS(_ context.Context, address string) error {
	host, _, _ := net.SplitHostPort(address)
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	if p.w.listeners[net.JoinHostPort(host, "25")] == nil {
		return syscall.ECONNREFUSED
	}
	return nil
}

// session begins an SMTP session with STARTTLS.
func (w *wires) session(ctx context.Context, address string, config *tls.Config) (*smtp.Client, error) {
	conn, err := w.dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c, err := smtp.NewClientStartTLS(conn, config)
	if err == nil {
		if err = c.Hello("journal.example.net"); err == nil {
			return c, nil
		}
	}
	conn.Close()
	return nil, err
}

// give sends a message over STARTTLS to a site, whose certificate must be in force and
// of one of the roots, and returns that certificate.
func (s *site) give(roots *x509.CertPool, to string, msg []byte) (*x509.Certificate, error) {
	c, err := s.w.session(context.Background(), s.cfg.Listen.SMTP, &tls.Config{RootCAs: roots, ServerName: s.host()})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	st, _ := c.TLSConnectionState()
	leaf := st.PeerCertificates[0]
	if err := c.Mail("", nil); err != nil {
		return leaf, err
	}
	if err := c.Rcpt(to, nil); err != nil {
		return leaf, err
	}
	w, err := c.Data()
	if err != nil {
		return leaf, err
	}
	if _, err := w.Write(msg); err != nil {
		return leaf, err
	}
	if err := w.Close(); err != nil {
		return leaf, err
	}
	_ = c.Quit() // as above; the message is stored
	return leaf, nil
}

// pop is a POP3 session over TLS that keeps every octet.
type pop struct {
	net.Conn
	r *bufio.Reader
}

func (p *pop) line() (string, error) {
	l, err := p.r.ReadString('\n')
	return strings.TrimSuffix(l, "\r\n"), err
}

func (p *pop) ask(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(p, format+"\r\n", args...); err != nil {
		return "", err
	}
	l, err := p.line()
	if err == nil && !strings.HasPrefix(l, "+OK") {
		err = errors.New(l)
	}
	return l, err
}

// fetch hands over and deletes everything that waits in a mailbox at a site.
func (s *site) fetch(roots *x509.CertPool, user, password string) (msgs [][]byte, err error) {
	conn, err := s.w.dial(context.Background(), "tcp", s.cfg.Listen.POP3S)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	tc := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: s.host()})
	p := &pop{tc, bufio.NewReader(tc)}
	if _, err := p.line(); err != nil {
		return nil, err
	}
	if _, err := p.ask("USER %s", user); err != nil {
		return nil, err
	}
	if _, err := p.ask("PASS %s", password); err != nil {
		return nil, err
	}
	stat, err := p.ask("STAT")
	if err != nil {
		return nil, err
	}
	count, err := strconv.Atoi(strings.Fields(stat)[1])
	if err != nil {
		return nil, err
	}
	for i := range count {
		if _, err := p.ask("RETR %d", i+1); err != nil {
			return nil, err
		}
		var b bytes.Buffer
		for {
			l, err := p.r.ReadBytes('\n')
			if err != nil {
				return nil, err
			}
			if string(l) == ".\r\n" {
				break
			}
			b.Write(bytes.TrimPrefix(l, []byte(".")))
		}
		msgs = append(msgs, b.Bytes())
		if _, err := p.ask("DELE %d", i+1); err != nil {
			return nil, err
		}
	}
	_, err = p.ask("QUIT")
	return msgs, err
}

// answers is a DNS handler that outlives the restarts of its node, and can be asked from
// outside of virtual time.
type answers struct {
	*dnsplugin.Handler
	node atomic.Pointer[site]
}

func newAnswers(t *testing.T, self string) *answers {
	a := &answers{}
	var err error
	if a.Handler, err = dnsplugin.New(dnsplugin.Options{Source: a, Challenges: a, Self: self, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *answers) Zone() *dnsplugin.Zone {
	if s := a.node.Load(); s != nil {
		return s.zone.Zone()
	}
	return nil
}

func (a *answers) TXT(name string) []string {
	if s := a.node.Load(); s != nil {
		return s.certs.TXT(name)
	}
	return nil
}

// ask asks for a name and returns the answers as text, without owner and TTL.
func (a *answers) ask(name string, qtype uint16) (out []string, err error) {
	rec := &plugintest.Recorder{}
	if _, err := a.ServeDNS(context.Background(), rec, new(dns.Msg).SetQuestion(name, qtype)); err != nil {
		return nil, err
	}
	if rec.Msg == nil || rec.Msg.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%s %s: %v", name, dns.TypeToString[qtype], rec.Msg)
	}
	for _, rr := range rec.Msg.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return out, nil
}

// joinSite makes the node of cfg a member through via, as Join does, but for the
// connection.
func joinSite(via *site, cfg *Config) error {
	inv, err := operator{via.Node}.Invite(context.Background(), admin.Invite{Role: "site", Life: time.Hour})
	if err != nil {
		return err
	}
	tok, err := parseToken(inv.Token)
	if err != nil {
		return err
	}
	failed := error(nil)
	release, err := claimState(cfg.State, &failed)
	if err != nil {
		return err
	}
	defer release()
	id, err := newIdentity(via.id.Cluster, cfg.Name, raftstore.Site)
	if err != nil {
		return err
	}
	self, err := cfg.member(id, via.store.State().Zone.Name)
	if err != nil {
		return err
	}
	csr, err := id.request()
	if err != nil {
		return err
	}
	ans, err := via.admit(context.Background(), joinRequest{tok.Invite, tok.Secret, self, csr})
	if err != nil {
		return err
	}
	if err := raftstore.Adopt(cfg.State, ans.State); err != nil {
		return err
	}
	return id.complete(cfg.State, ans.Certificate)
}

// rootsOf trusts the appliance's own CA, and more.
func rootsOf(s *site, more ...*x509.Certificate) (*x509.CertPool, error) {
	root, err := ca.ParseCertificate(s.store.State().CA.Certificate)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	for _, c := range more {
		pool.AddCert(c)
	}
	return pool, nil
}

// within waits, in virtual time, until f returns nil.
func within(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(time.Minute) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s: %v", d, what, err)
		}
	}
}
