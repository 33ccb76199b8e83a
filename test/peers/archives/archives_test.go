//go:build peers

// Package archives lets the POP3 clients that people run fetch from a lab's sites, and
// compares what they wrote with what was sent.
package archives

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/sender"
	"msgw/test/labtest"
	"msgw/test/peers"
)

var root = &peers.Root{Name: "archives", Packages: []string{"fetchmail", "getmail6", "mpop", "curl", "python3", "fdm", "nsd", "unbound"}}

func TestMain(m *testing.M) {
	(&peers.Suite{Roots: []*peers.Root{root}}).Main(m)
}

// TestArchives is one lab that all clients fetch from. Its parts follow one another;
// within a part, clients that do not disturb each other run at the same time.
func TestArchives(t *testing.T) {
	root.Versions(t)
	s := newScene(t)
	for _, part := range []struct {
		name string
		run  func(t *testing.T, s *scene)
	}{
		{"corpus", corpusStory},
		{"certificates", certificateStory},
		{"passwords", passwordStory},
		{"sites", sitesStory},
		{"in use", inUseStory},
		{"bulk", bulkStory},
		{"cut", cutStory},
		{"node killed", nodeStory},
	} {
		start := time.Now()
		t.Run(part.name, func(t *testing.T) { part.run(t, s) })
		t.Logf("%s: %v", part.name, time.Since(start).Round(100*time.Millisecond))
	}
}

// scene is a running lab, the DNS around it, and mailboxes that nobody used yet.
type scene struct {
	*labtest.Lab
	file  lab.File
	trust *x509.CertPool
	other *authority // that the lab knows nothing of

	mu     sync.Mutex
	unused []lab.Mailbox
}

const (
	goodCA  = "/srv/ca.pem"    // in the root: what the lab's certificates are checked against
	otherCA = "/srv/other.pem" // another CA's certificate
	boxes   = "64"             // how many mailboxes the lab makes
)

func newScene(t *testing.T) *scene {
	l := peers.Lab(t, "--mailboxes", boxes)
	s := &scene{Lab: l, file: l.File(), trust: x509.NewCertPool()}
	s.unused = s.file.Mailboxes
	peers.ServeTree(t, root, s.file)
	peers.Unbound(t, root, 5*time.Second)
	ca, err := os.ReadFile(s.file.CA)
	if err != nil {
		t.Fatal(err)
	}
	if !s.trust.AppendCertsFromPEM(ca) {
		t.Fatalf("%s holds no certificate", s.file.CA)
	}
	root.Write(t, goodCA, string(ca), 0o644)
	s.other = newAuthority(t)
	root.Write(t, otherCA, string(s.other.pem), 0o644)
	installClients(t)
	return s
}

// site returns a node of the lab, as lab.json has it now.
func (s *scene) site(name string) lab.NodeRow {
	for _, n := range s.File().Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("no node is named " + name)
}

// box returns a mailbox that nobody used yet.
func (s *scene) box(t testing.TB) lab.Mailbox {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unused) == 0 {
		t.Fatal("the lab has too few mailboxes")
	}
	b := s.unused[0]
	s.unused = s.unused[1:]
	return b
}

// node does what `msgw lab start|stop|kill` does, and waits until a started node has
// nothing to complain of.
func (s *scene) node(t testing.TB, verb, name string) {
	t.Helper()
	if out, err := s.Msgw("lab", verb, name, "--dir", s.Dir); err != nil {
		t.Fatalf("msgw lab %s %s: %v\n%s", verb, name, err, out)
	}
	if verb == "start" {
		start := time.Now()
		defer func() { t.Logf("%s is well %v after its start", name, time.Since(start).Round(100*time.Millisecond)) }()
		labtest.Within(t, 60*time.Second, name+" is well", func() error {
			out, err := s.Msgw("status", "--dir", s.site(name).Dir)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
}

// send sends messages to mailboxes, by MX but to one site only, with several
// connections at once.
func (s *scene) send(t testing.TB, site string, to []lab.Mailbox, messages []message) {
	t.Helper()
	want := netip.MustParseAddr(s.site(site).Addr)
	snd, err := sender.New(sender.Config{
		Servers: []string{peers.ResolverAddr + ":53"}, Helo: "journal.example.net",
		TLS: &tls.Config{RootCAs: s.trust}, RequireTLS: true,
		Address: func(a netip.Addr) netip.AddrPort {
			if a == want {
				return netip.AddrPortFrom(a, 25)
			}
			return netip.AddrPortFrom(a, 1) // nobody listens
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, b := range to {
		addresses = append(addresses, b.Address)
	}
	work := make(chan message)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			x, err := snd.Dial(t.Context(), s.file.Zone)
			if err != nil {
				t.Errorf("dial: %v", err)
			}
			for m := range work {
				if x == nil {
					continue
				}
				env := sender.Envelope{From: m.from, To: addresses}
				if m.chunked {
					env.Chunks = &sender.Chunks{Sizes: []int{65_536}}
				}
				if _, err := x.Send(t.Context(), env, m.octets); err != nil {
					t.Errorf("send %s: %v", m.name, err)
				}
			}
			if x != nil {
				x.Close()
			}
		})
	}
	for _, m := range messages {
		work <- m
	}
	close(work)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// dial opens a maildrop with the strict client of internal/lab/archive.
func (s *scene) dial(t testing.TB, site string, b lab.Mailbox) (*archive.Conn, error) {
	n := s.site(site)
	c, err := archive.Dial(t.Context(), archive.Config{Address: n.POP3S, User: b.ID, Password: b.Password,
		TLS: &tls.Config{RootCAs: s.trust, ServerName: n.Host}})
	if err == nil {
		if err = c.Login(); err != nil {
			c.Close()
		}
	}
	return c, err
}

// uidls lists a maildrop, waiting for whoever has it open to have left.
func (s *scene) uidls(t testing.TB, site string, b lab.Mailbox) []string {
	t.Helper()
	var uidls []string
	labtest.Within(t, 60*time.Second, "the maildrop is free", func() error {
		c, err := s.dial(t, site, b)
		var refused *archive.Error
		if errors.As(err, &refused) && refused.Code == "IN-USE" {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		list, err := c.Messages()
		if err != nil {
			t.Fatal(err)
		}
		uidls = nil
		for _, m := range list {
			uidls = append(uidls, m.UIDL)
		}
		return c.Quit()
	})
	return uidls
}

// waiting returns what `msgw mailbox list` says of a mailbox.
func (s *scene) waiting(t testing.TB, b lab.Mailbox) string {
	t.Helper()
	out, err := s.Msgw("mailbox", "list", "--dir", s.site("msgw1").Dir)
	if err != nil {
		t.Fatalf("mailbox list: %v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == b.ID {
			waits, _, _ := strings.Cut(strings.Join(f[2:], " "), " made by the lab")
			return waits
		}
	}
	t.Fatalf("mailbox list does not have %s:\n%s", b.ID, out)
	return ""
}
