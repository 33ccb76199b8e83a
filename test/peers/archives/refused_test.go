//go:build peers

package archives

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
)

// fails runs a client that must fail, say why, and neither get nor delete anything.
func (s *scene) fails(t *testing.T, u *setup, b lab.Mailbox, waiting int, says string) {
	t.Helper()
	out, err := u.run(t)
	if err == nil {
		t.Errorf("%s ends well:\n%s", u.name, tail(out))
	}
	if says == "" || !contains(out, says) {
		t.Errorf("%s does not say %q:\n%s", u.name, says, tail(out))
	}
	if w := u.written(t); len(w) > 0 {
		t.Errorf("%s wrote %d messages", u.name, len(w))
	}
	if n := s.uidls(t, "msgw1", b); len(n) != waiting {
		t.Errorf("after %s %d messages wait, want %d", u.name, len(n), waiting)
	}
}

func contains(out, what string) bool {
	return strings.Contains(strings.ToLower(out), strings.ToLower(what))
}

// certificateStory: nobody says a password to who is not the site.
func certificateStory(t *testing.T, s *scene) {
	b := s.box(t)
	s.send(t, "msgw1", []lab.Mailbox{b}, []message{{name: "secret", octets: report.New(5, 0, 3000)}})
	n := s.site("msgw1")
	for _, c := range clients() {
		ports := []int{110, 995}
		for _, port := range ports {
			t.Run(fmt.Sprintf("%s at port %d", c.name, port), func(t *testing.T) {
				u := c.new(t)
				p := u.add(n, b)
				p.port = port
				if port == 110 && c.noSTLS {
					// It goes on in clear, and the site wants no password there.
					s.fails(t, u, b, 1, "TLS is required")
					return
				}
				p.ca = otherCA
				s.fails(t, u, b, 1, c.distrusts)
				// The right CA, but not a name of the site.
				u = c.new(t)
				p = u.add(n, b)
				p.port, p.host = port, n.Addr
				if c.anyName {
					p.keep = true
					if n := len(u.fetch(t)); n != 1 {
						t.Errorf("%s wrote %d messages", c.name, n)
					}
					return
				}
				s.fails(t, u, b, 1, c.misnamed)
			})
		}
	}
}

// inUseStory: two programs have the same maildrop open. The second is told so, whoever
// it is, and the first notices nothing.
func inUseStory(t *testing.T, s *scene) {
	b := s.box(t)
	messages := []message{{name: "small", octets: report.New(6, 0, 3000)}, {name: "large", octets: report.New(6, 1, 1<<20)}}
	s.send(t, "msgw1", []lab.Mailbox{b}, messages)
	r := s.relay(t, s.site("msgw1"), point{octets: 256 << 10})
	first := fetchmail.new(t)
	p := first.add(s.site("msgw1"), b)
	p.port, p.ca, p.timeout = r.port, otherCA, 600
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd, out := first.start(ctx, t)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r.awaitHeld(t, first, ended, out)
	for _, c := range clients() {
		t.Run(c.name, func(t *testing.T) {
			u := c.new(t)
			u.add(s.site("msgw1"), b)
			out, err := u.run(t)
			if err == nil || !contains(out, c.inUse) {
				t.Errorf("%s: %v, and does not say %q:\n%s", c.name, err, c.inUse, out)
			}
			if w := u.written(t); len(w) > 0 {
				t.Errorf("%s wrote %d messages", c.name, len(w))
			}
		})
	}
	log, err := os.ReadFile(filepath.Join(s.Dir, "msgw1.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(log, []byte("result=in_use")); n != len(clients()) {
		t.Errorf("msgw1 says %d times that the maildrop was in use, want %d", n, len(clients()))
	}
	r.letGo()
	if err := <-ended; err != nil {
		t.Fatalf("the first: %v\n%s", err, out)
	}
	first.compare(t, messages, first.written(t))
	if got := s.waiting(t, b); got != emptyEverywhere {
		t.Errorf("msgw mailbox list says %s", got)
	}
}
