//go:build peers

// Package senders lets real mail servers and mail programs send to a lab: they find
// it by MX through a real resolver, from the mailbox address alone, choose among its
// hosts, keep what they cannot deliver and come again. What they put on the wire is
// recorded, and compared with what an archive fetches.
package senders

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/internal/ca"
	"msgw/internal/lab"
	"msgw/internal/node"
	"msgw/test/labtest"
	"msgw/test/peers"
)

// Mail servers exclude each other as Debian packages: a root for each.
var (
	tools     = &peers.Root{Name: "senders", Packages: []string{"nsd", "unbound", "msmtp", "swaks", "libnet-dns-perl", "libnet-ssleay-perl"}}
	postfix   = &peers.Root{Name: "postfix", Packages: []string{"postfix"}}
	exim      = &peers.Root{Name: "exim", Packages: []string{"exim4-daemon-light"}}
	opensmtpd = &peers.Root{Name: "opensmtpd", Packages: []string{"opensmtpd"}}
)

func TestMain(m *testing.M) {
	(&peers.Suite{Roots: []*peers.Root{tools, postfix, exim, opensmtpd}}).Main(m)
}

const (
	senderHost = "journal.example.net" // the host that every sender says it is, and the domain of its bounces
	patience   = 90 * time.Second      // for what takes a moment on an idle machine
	// Answers are kept as long as the zone allows, 60 s at most.
	maxTTL = time.Hour
)

// world is a lab, the DNS above it and a resolver.
type world struct {
	*labtest.Lab
	t        *testing.T // that all of it lasts as long as
	file     lab.File
	resolver *peers.Process
	boxes    int // mailboxes in use
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, Lab: peers.Lab(t, "--mailboxes", "8")}
	w.file = w.File()
	peers.ServeTree(t, tools, w.file)
	w.remember(t)
	return w
}

// box returns a mailbox that no other part of the test uses.
func (w *world) box(t *testing.T) lab.Mailbox {
	t.Helper()
	if w.boxes == len(w.file.Mailboxes) {
		t.Fatal("the lab has no more mailboxes")
	}
	w.boxes++
	return w.file.Mailboxes[w.boxes-1]
}

// site returns a site by number.
func (w *world) site(n int) lab.NodeRow { return w.file.Nodes[n-1] }

// remember starts the resolver anew and lets it learn the whole way to both sites, so
// that for as long as the answers live it names them both, whatever becomes of them.
func (w *world) remember(t *testing.T) {
	t.Helper()
	if w.resolver != nil {
		if err := w.resolver.Stop(syscall.SIGTERM); err != nil {
			t.Logf("unbound: %v", err)
		}
	}
	w.resolver = peers.Unbound(w.t, tools, maxTTL)
	mx, ttl := w.exchangers(t)
	if len(mx) != 2 || ttl < 20 {
		t.Fatalf("the resolver knows %v for %d s", mx, ttl)
	}
	for _, n := range w.file.Nodes {
		for qtype, want := range map[uint16]int{dns.TypeA: 1, dns.TypeAAAA: 0} {
			if m, err := peers.Ask(peers.ResolverAddr, n.Host+".", qtype); err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != want {
				t.Fatalf("%s: %v, %v", n.Host, m, err)
			}
		}
	}
}

// exchangers returns what the resolver says that the MX records are, as "10 host", and
// for how many seconds more.
func (w *world) exchangers(t *testing.T) (mx []string, ttl uint32) {
	t.Helper()
	m, err := peers.Ask(peers.ResolverAddr, w.file.Zone+".", dns.TypeMX)
	if err != nil {
		t.Fatal(err)
	}
	for _, rr := range m.Answer {
		if r, ok := rr.(*dns.MX); ok {
			mx, ttl = append(mx, fmt.Sprintf("%d %s", r.Preference, r.Mx)), r.Hdr.Ttl
		}
	}
	slices.Sort(mx)
	return mx, ttl
}

// stop ends a node as an operator's service manager would.
func (w *world) stop(t *testing.T, n lab.NodeRow) { w.tell(t, "stop", n) }

// start starts a node again and waits until it takes mail.
func (w *world) start(t *testing.T, n lab.NodeRow) {
	t.Helper()
	w.tell(t, "start", n)
	labtest.Within(t, patience, n.Name+" takes mail", func() error {
		st, err := admin.NewClient(n.Dir, node.SocketFile).Status(t.Context())
		if err == nil && !st.Accepting {
			err = errors.New(st.Reason)
		}
		return err
	})
}

func (w *world) tell(t *testing.T, verb string, n lab.NodeRow) {
	t.Helper()
	if out, err := w.Msgw("lab", verb, n.Name, "--dir", w.Dir); err != nil {
		t.Fatalf("lab %s %s: %v\n%s", verb, n.Name, err, out)
	}
}

// trust puts the lab's CA bundle into a root and returns its path there.
func (w *world) trust(t *testing.T, r *peers.Root) string {
	t.Helper()
	b, err := os.ReadFile(w.file.CA)
	if err != nil {
		t.Fatal(err)
	}
	const path = "/etc/ssl/lab-ca.pem"
	r.Write(t, path, string(b), 0o644)
	return path
}

// strangeCA puts a CA bundle into a root that the lab's certificates do not end at.
func strangeCA(t *testing.T, r *peers.Root) string {
	t.Helper()
	pem, _, err := ca.New("somebody else's", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	const path = "/etc/ssl/strange-ca.pem"
	r.Write(t, path, pem, 0o644)
	return path
}
