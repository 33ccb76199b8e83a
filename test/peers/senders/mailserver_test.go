//go:build peers

package senders

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/internal/lab/sender"
	"msgw/test/labtest"
	"msgw/test/peers"
)

// mailServer is a mail server with a queue, on a loopback address of its own. It
// delivers by MX, and what it cannot deliver for good it returns to addresses at
// senderHost, which end in one file.
type mailServer struct {
	root *peers.Root
	addr string // where it takes mail
	conf func(t *testing.T, d delivery)
	up   func(t *testing.T) // until t ends
	down func(t *testing.T)
	t    *testing.T // that it lasts as long as

	queue func(t *testing.T) int // how many messages wait
	flush func(t *testing.T)     // try all of them now
	// What makes it forget that a host has failed, where a flush does not. Nothing may
	// be under way.
	pardon func(t *testing.T)
	log    func() string

	// What it logs.
	verified  string                     // a connection whose certificate was verified
	distrusts string                     // one that could not be
	deferred  string                     // a message put off
	refusedBy func(n lab.NodeRow) string // a connection that a site refused
	// What it tells the sender of a message that is larger than a site takes. Empty where
	// this is not tried, as it takes long.
	tooLarge string

	running bool
}

// delivery says how a mail server is to send.
type delivery struct {
	ca   string // bundle that the sites' certificates must end at; empty: no TLS is asked for
	from string // source address; empty: any
}

// returned is the file of a root that undeliverable mail ends in.
const returned = "/var/returned/box"

// start starts the mail server until t ends, or again if it runs, and waits until it
// takes mail. What is in its queue stays.
func (m *mailServer) start(t *testing.T, d delivery) {
	t.Helper()
	if m.running {
		m.down(t)
	} else {
		m.t = t
		t.Cleanup(func() {
			m.down(t)
			if log := m.log(); t.Failed() {
				t.Logf("end of %s's log:\n%s", m.root.Name, log[max(0, len(log)-6000):])
			}
		})
		// A mail server listens on addresses that an interface has, and all of
		// 127.0.0.0/8 but one is only a route.
		if out, err := exec.Command("ip", "address", "add", m.addr+"/8", "dev", "lo").CombinedOutput(); err != nil {
			t.Fatalf("ip: %v\n%s", err, out)
		}
		m.forget(t)
	}
	m.running = true
	m.conf(t, d)
	m.up(m.t)
	m.listening(t)
}

// listening waits until it takes mail.
func (m *mailServer) listening(t *testing.T) {
	t.Helper()
	labtest.Within(t, patience, m.root.Name+" takes mail", func() error { return listens(m.addr) })
}

// listens says why nothing greets at an address.
func listens(addr string) error {
	c, err := net.DialTimeout("tcp", addr+":25", patience)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return err
	}
	_, err = c.Write([]byte("QUIT\r\n"))
	return err
}

// bounces returns what came back to the senders.
func (m *mailServer) bounces(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(m.root.Path(returned))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// forget empties the file of what came back. Anybody may write to it.
func (m *mailServer) forget(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(m.root.Path("/var/returned")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(m.root.Path("/var/returned"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(m.root.Path("/var/returned"), nobody, nobody); err != nil {
		t.Fatal(err)
	}
}

// nobody is Debian's user and group of that name.
const nobody = 65534

// client returns what gives messages to the mail server. It asks for the MX as for any
// domain, and is then led to the server.
func (m *mailServer) client(t *testing.T) *sender.Sender {
	t.Helper()
	s, err := sender.New(sender.Config{Servers: []string{peers.ResolverAddr + ":53"}, Helo: "desk.example.net",
		Address:  func(netip.Addr) netip.AddrPort { return netip.MustParseAddrPort(m.addr + ":25") },
		Timeouts: sender.Timeouts{Query: 5 * time.Second, Connect: patience, Reply: patience, Block: patience, Final: patience}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// give gives the mail server n more reports of a batch, several at a time.
func (m *mailServer) give(t *testing.T, b *batch, n int, to ...string) {
	t.Helper()
	s := m.client(t)
	var wg sync.WaitGroup
	work := make(chan int)
	for range min(n, 4) {
		wg.Go(func() {
			for i := range work {
				if _, err := s.Send(t.Context(), sender.Envelope{From: "reports@" + senderHost, To: to}, b.octets(i)); err != nil {
					t.Errorf("report %d was not even taken: %v", i, err)
				}
			}
		})
	}
	for range n {
		work <- b.sent
		b.sent++
	}
	close(work)
	wg.Wait()
}

// refusal says in a word how a mail server refused a message, or nothing.
func refusal(t *testing.T, err error) string {
	t.Helper()
	var se *sender.Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &se) && se.Code > 0:
		return fmt.Sprint(se.Code)
	case errors.Is(err, sender.ErrNotOffered):
		return "not offered"
	}
	t.Error(err)
	return "failed"
}

// waiting waits until n messages are in the queue.
func (m *mailServer) waiting(t *testing.T, n int) {
	t.Helper()
	labtest.Within(t, patience, fmt.Sprintf("%d messages are in the queue", n), func() error {
		if got := m.queue(t); got != n {
			return fmt.Errorf("%d are", got)
		}
		return nil
	})
}

// resumes waits until all that waits in the queue is delivered, trying again and again.
func (m *mailServer) resumes(t *testing.T) {
	t.Helper()
	labtest.Within(t, patience, "what waited is delivered", func() error {
		m.flush(t)
		if got := m.queue(t); got > 0 {
			return fmt.Errorf("%d messages wait", got)
		}
		return nil
	})
}

// logs waits until the log, from an offset on, has a text n times.
func (m *mailServer) logs(t *testing.T, from int, text string, n int) {
	t.Helper()
	labtest.Within(t, patience, fmt.Sprintf("%s logs %q %d times", m.root.Name, text, n), func() error {
		if got := strings.Count(m.log()[from:], text); got < n {
			return fmt.Errorf("%d times", got)
		}
		return nil
	})
}

// try runs a program of a root and returns what it printed and how it ended. Unlike
// Root.Output it works while a test ends.
func try(r *peers.Root, stdin string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := r.Command(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must fails the test if a program that try ran did.
func must(t *testing.T) func(out string, err error) string {
	return func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return out
	}
}
