//go:build bench && peers

package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab/archive"
	"msgw/internal/node"
	"msgw/test/labtest"
	"msgw/test/peers"
)

// zoneName is the zone of every appliance here.
const zoneName = "msgw.example.com"

// appliance is msgw at one site or two; mail goes to the first.
type appliance struct {
	target
	dir, name, net string // net: the first three octets of its addresses
	delay          time.Duration
	sites          []*site
	boxes          []admin.Credentials
	g              *group
}

// site is one node.
type site struct {
	name, addr, conf, state string
	pid                     int
}

func (s *site) admin() *admin.Client { return admin.NewClient(s.state, node.SocketFile) }
func (s *site) host() string         { return s.name + "." + zoneName }

// newAppliance returns an appliance whose sites are roundTrip apart.
func newAppliance(dir, name, net string, sites int, roundTrip time.Duration) *appliance {
	a := &appliance{dir: filepath.Join(dir, name), name: name, net: net, delay: roundTrip / 2}
	for i := range sites {
		s := &site{name: fmt.Sprintf("msgw%d", i+1), addr: fmt.Sprintf("%s.%d", net, 11+i)}
		s.conf, s.state = filepath.Join(a.dir, s.name+".toml"), filepath.Join(a.dir, s.name)
		a.sites = append(a.sites, s)
	}
	return a
}

func (a *appliance) group() *group { return a.g }

func (a *appliance) start(t *testing.T) {
	t.Helper()
	a.g = newGroup(t, a.name)
	if err := os.Mkdir(a.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first := a.sites[0]
	for i, s := range a.sites {
		a.configure(t, s)
		if i == 0 {
			a.msgw(t, "init", "--config", s.conf, "--zone", zoneName)
		} else {
			inv, err := first.admin().Invite(t.Context(), admin.Invite{Role: "site", Life: 10 * time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			a.msgw(t, "join", "--config", s.conf, inv.Token)
		}
		a.serve(t, s)
		labtest.Within(t, time.Minute, s.name+" takes mail", func() error { return a.ready(t.Context(), i+1) })
	}
	a.makeBoxes(t)
	labtest.Within(t, time.Minute, "all sites take mail", func() error { return a.ready(t.Context(), len(a.sites)) })
}

// configure writes a site's configuration file. Where the sites are apart, the others
// reach it through a program that holds every octet up.
func (a *appliance) configure(t *testing.T, s *site) {
	t.Helper()
	listen := s.addr + ":8451"
	public := listen
	if a.delay > 0 {
		public = strings.Replace(s.addr, a.net+".", a.net+".1", 1) + ":8451"
		cmd := self(t, "delay", public, listen, a.delay.String())
		defer newGroup(t, "delay").adopt(t, cmd)()
		peers.Start(t, "delay", cmd)
	}
	text := fmt.Sprintf("name = %q\nstate = %q\n[listen]\nsmtp = %q\npop3 = %q\npop3s = %q\ndns = %q\npeer = %q\n[public]\nipv4 = [%q]\npeer = %q\n",
		s.name, s.state, s.addr+":25", s.addr+":110", s.addr+":995", s.addr+":53", listen, s.addr, public)
	if err := os.WriteFile(s.conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (a *appliance) msgw(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), peers.Program("msgw"), args...).CombinedOutput(); err != nil {
		t.Fatalf("msgw %s: %v\n%s", args[0], err, out)
	}
}

func (a *appliance) serve(t *testing.T, s *site) {
	t.Helper()
	cmd := exec.Command(peers.Program("msgw"), "serve", "--config", s.conf)
	defer a.g.adopt(t, cmd)()
	p := peers.Start(t, a.name+"-"+s.name, cmd)
	t.Cleanup(func() { labtest.CheckLog(t, p.Log) })
	s.pid = cmd.Process.Pid
}

// ready says why n sites do not all take mail, or nil.
func (a *appliance) ready(ctx context.Context, n int) error {
	for _, s := range a.sites[:n] {
		st, err := s.admin().Status(ctx)
		switch {
		case err != nil:
			return err
		case !st.Quorum || len(st.Voters) < n:
			return fmt.Errorf("%s: quorum %v, voters %v", s.name, st.Quorum, st.Voters)
		case !st.Accepting:
			return fmt.Errorf("%s: %s", s.name, st.Reason)
		case len(st.Trouble) > 0:
			return fmt.Errorf("%s: %s", s.name, strings.Join(st.Trouble, "; "))
		}
		for _, p := range st.Peers {
			if !p.Reachable || !p.Accepting {
				return fmt.Errorf("%s does not see that %s takes mail: %s %s", s.name, p.Name, p.Reason, p.Error)
			}
		}
	}
	return nil
}

// makeBoxes makes the mailboxes and says where to send.
func (a *appliance) makeBoxes(t *testing.T) {
	t.Helper()
	first := a.sites[0]
	for range mailboxes {
		c, err := first.admin().CreateMailbox(t.Context(), admin.CreateMailbox{})
		if err != nil {
			t.Fatal(err)
		}
		a.boxes = append(a.boxes, c)
	}
	ca, err := first.admin().CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ca))
	a.target = target{addr: first.addr + ":25", tls: &tls.Config{RootCAs: pool, ServerName: first.host()},
		to: func(sender int) string { return a.boxes[sender%mailboxes].Address }}
}

func (a *appliance) load(_ *testing.T, c cell, warm, measured time.Duration) *load {
	return a.send(c, warm, measured)
}

// settle has nothing to wait for: what is acknowledged is there.
func (a *appliance) settle(*testing.T, int) {}

// take counts what every site lists, compares a message of each mailbox with what was
// sent, and deletes all.
func (a *appliance) take(t *testing.T, n, size int) {
	t.Helper()
	var mu sync.Mutex
	found := 0
	var wg sync.WaitGroup
	work := make(chan func() (int, error))
	for range 4 {
		wg.Go(func() {
			for f := range work {
				got, err := f()
				mu.Lock()
				found += got
				if err != nil {
					t.Errorf("%s: %v", a.name, err)
				}
				mu.Unlock()
			}
		})
	}
	for _, s := range a.sites {
		for _, box := range a.boxes {
			work <- func() (int, error) { return a.empty(t.Context(), s, box, size) }
		}
	}
	close(work)
	wg.Wait()
	if found != n {
		t.Errorf("%s: %d messages acknowledged, %d found", a.name, n, found)
	}
}

// empty deletes what waits in a mailbox at a site and returns how many messages that
// were.
func (a *appliance) empty(ctx context.Context, s *site, box admin.Credentials, size int) (int, error) {
	cfg := archive.Config{Address: s.addr + ":995", User: box.ID, Password: box.Password, Timeout: replyTime,
		TLS: &tls.Config{RootCAs: a.tls.RootCAs, ServerName: s.host()}}
	c, err := archive.Dial(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.Login(); err != nil {
		return 0, err
	}
	messages, err := c.Messages()
	if err != nil {
		return 0, err
	}
	for i, m := range messages {
		if i == 0 && size > 0 {
			msg, err := c.Retrieve(m)
			if err != nil {
				return 0, err
			}
			if !isLetter(msg, size) {
				return 0, errors.New("a message was changed")
			}
		}
		if err := c.Delete(m); err != nil {
			return 0, err
		}
	}
	return len(messages), c.Quit()
}

// isLetter says whether msg ends with a letter of size octets, below what was put on top
// of it, but for the line that tells one from the other.
func isLetter(msg []byte, size int) bool {
	want := bytes.TrimSuffix(letter(size), []byte(".\r\n"))
	head := len(fmt.Sprintf(sizeLine, 0))
	return bytes.HasSuffix(msg, want[head:])
}
