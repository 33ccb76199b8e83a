// Package test runs the built program as its users do: real processes, real
// connections, and mail programs of our own that are strict about octets.
package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/sender"
	"msgw/internal/node"
	"msgw/test/labtest"
)

var program string // the built msgw

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "msgw-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if program, err = labtest.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// These tests wait for programs most of the time: for elections, time-outs, probes.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := f.Value.Set(strconv.Itoa(3 * runtime.GOMAXPROCS(0))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// single is an appliance of one node.
type single struct {
	t                      *testing.T
	name, dir, config      string
	smtp, pop3, pop3s, dns string

	mu  sync.Mutex
	cmd *exec.Cmd
	log *os.File
}

const zone = "msgw.example.com"

func freePort(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		u, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			continue
		}
		defer u.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return port
	}
}

func newSingle(t *testing.T) *single {
	t.Helper()
	s := newMachine(t, "a")
	if out, err := exec.Command(program, "init", "--config", s.config, "--zone", zone).CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	return s
}

// newMachine is a machine with a configuration file and no node yet.
func newMachine(t *testing.T, name string) *single {
	t.Helper()
	base := t.TempDir()
	at := func() string { return "127.0.0.1:" + freePort(t) }
	s := &single{t: t, name: name, dir: filepath.Join(base, name), config: filepath.Join(base, name+".toml"), smtp: at(), pop3: at(), pop3s: at(), dns: at()}
	_, smtp, _ := net.SplitHostPort(s.smtp)
	_, dns, _ := net.SplitHostPort(s.dns)
	text := fmt.Sprintf("name = %q\nstate = %q\n[listen]\nsmtp = %q\npop3 = %q\npop3s = %q\ndns = %q\npeer = %q\n[public]\nipv4 = [\"127.0.0.1\"]\nsmtp_port = %s\ndns_port = %s\n",
		s.name, s.dir, s.smtp, s.pop3, s.pop3s, s.dns, at(), smtp, dns)
	if err := os.WriteFile(s.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.log, err = os.Create(filepath.Join(base, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill(syscall.SIGKILL)
		s.log.Close()
		labtest.CheckLog(t, s.log.Name())
	})
	return s
}

func (s *single) start() {
	s.t.Helper()
	cmd := exec.Command(program, "serve", "--config", s.config)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.cmd = cmd
	s.mu.Unlock()
}

// kill ends the node and waits until it has ended.
func (s *single) kill(sig os.Signal) error {
	s.mu.Lock()
	cmd := s.cmd
	s.cmd = nil
	s.mu.Unlock()
	if cmd == nil {
		return nil
	}
	cmd.Process.Signal(sig)
	return cmd.Wait()
}

func (s *single) admin() *admin.Client { return admin.NewClient(s.dir, node.SocketFile) }

// await waits until the node can make changes, and so knows what it does not know.
func (s *single) await() {
	s.t.Helper()
	labtest.Within(s.t, 30*time.Second, "node has a quorum", func() error {
		st, err := s.admin().Status(s.t.Context())
		if err == nil && (!st.Quorum || !st.Accepting) {
			err = fmt.Errorf("quorum %v, accepting %v", st.Quorum, st.Accepting)
		}
		return err
	})
}

func (s *single) mailbox() admin.Credentials {
	s.t.Helper()
	c, err := s.admin().CreateMailbox(s.t.Context(), admin.CreateMailbox{})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// trust returns the certificates of the appliance's own CA.
func (s *single) trust() *x509.CertPool {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "config.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	var c struct{ CA struct{ Certificate string } }
	if err := json.Unmarshal(b, &c); err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(c.CA.Certificate)) {
		s.t.Fatal("no CA certificate")
	}
	return pool
}

func (s *single) sender() *sender.Sender {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.smtp)
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		s.t.Fatal(err)
	}
	snd, err := sender.New(sender.Config{Servers: []string{s.dns}, Helo: "journal.example.net",
		Address: func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, uint16(p)) },
		TLS:     &tls.Config{RootCAs: s.trust()}, RequireTLS: true,
		Timeouts: sender.Timeouts{Query: time.Second, Connect: 5 * time.Second, Reply: 20 * time.Second, Block: 20 * time.Second, Final: 30 * time.Second}})
	if err != nil {
		s.t.Fatal(err)
	}
	return snd
}

// fetch runs one POP3 session and returns the messages by UIDL.
func (s *single) fetch(ctx context.Context, c admin.Credentials, password string, stls, remove bool) (map[string][]byte, error) {
	cfg := archive.Config{Address: s.pop3s, User: c.ID, Password: password, TLS: &tls.Config{RootCAs: s.trust(), ServerName: s.name + "." + zone}}
	if stls {
		cfg.Address, cfg.STLS = s.pop3, true
	}
	got := map[string][]byte{}
	_, err := archive.Fetch(ctx, cfg, remove, func(id string, msg []byte) error {
		got[id] = bytes.Clone(msg)
		return nil
	})
	return got, err
}
