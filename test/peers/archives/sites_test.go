//go:build peers

package archives

import (
	"fmt"
	"testing"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
)

// sitesStory: an archive has two profiles, one for each site, and gets what came to
// either.
func sitesStory(t *testing.T, s *scene) {
	boxes := map[*client]lab.Mailbox{}
	var all []lab.Mailbox
	for _, c := range clients() {
		boxes[c] = s.box(t)
		all = append(all, boxes[c])
	}
	var messages []message
	for i := range 5 {
		messages = append(messages, message{name: fmt.Sprintf("sites-%d", i), octets: report.New(8, i, 3000)})
	}
	s.send(t, "msgw1", all, messages[:3])
	s.send(t, "msgw2", all, messages[3:])
	each(t, "union", clients(), func(t *testing.T, c *client) {
		if got, want := s.waiting(t, boxes[c]), "msgw1: 3, msgw2: 2"; got != want {
			t.Errorf("msgw mailbox list says %s, want %s", got, want)
		}
		u := c.new(t)
		u.add(s.site("msgw1"), boxes[c])
		u.add(s.site("msgw2"), boxes[c])
		c.compare(t, messages, u.fetch(t))
		if got := s.waiting(t, boxes[c]); got != emptyEverywhere {
			t.Errorf("msgw mailbox list says %s", got)
		}
	})
}
