//go:build peers

package archives

import (
	"os/exec"
	"strings"
	"testing"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
	"msgw/test/peers"
)

// passwords are some that an operator may choose, and what they are.
func passwords() [][2]string {
	var all strings.Builder
	for c := byte('!'); c <= '~'; c++ {
		all.WriteByte(c)
		if c == 'M' {
			all.WriteByte(' ')
		}
	}
	return [][2]string{{"every printable ASCII character", all.String()}, {"spaces at both ends", "  it's \"spaced\" `out` \\ "}}
}

// passwordStory: a wrong password, and ones that are hard to write down.
func passwordStory(t *testing.T, s *scene) {
	boxes := map[*client]lab.Mailbox{}
	var all []lab.Mailbox
	for _, c := range clients() {
		boxes[c] = s.box(t)
		all = append(all, boxes[c])
	}
	messages := []message{{name: "one", octets: report.New(7, 0, 3000)}, {name: "two", octets: report.New(7, 1, 3000)}}
	s.send(t, "msgw1", all, messages)
	each(t, "wrong", clients(), func(t *testing.T, c *client) {
		u := c.new(t)
		u.add(s.site("msgw1"), boxes[c]).password = "not the password"
		s.fails(t, u, boxes[c], len(messages), c.rejected)
	})
	each(t, "hard to write", clients(), func(t *testing.T, c *client) {
		b := boxes[c]
		for _, p := range passwords() {
			kind, password := p[0], p[1]
			s.passwd(t, b, password)
			b.Password = password
			u := c.new(t)
			u.add(s.site("msgw1"), b).keep = true
			if why, ok := c.inexpressible[kind]; ok {
				if out, err := u.run(t); err == nil {
					t.Errorf("%s can have %s in its configuration after all (%s):\n%s", c.name, kind, why, out)
				}
				continue
			}
			c.compare(t, messages, u.fetch(t))
		}
	})
}

// passwd changes a mailbox's password as a script does.
func (s *scene) passwd(t testing.TB, b lab.Mailbox, password string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), peers.Program("msgw"), "mailbox", "passwd", b.ID, "--dir", s.site("msgw1").Dir)
	cmd.Stdin = strings.NewReader(b.Password + "\n" + password + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("msgw mailbox passwd: %v\n%s", err, out)
	}
}
