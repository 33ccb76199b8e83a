//go:build peers

package archives

import (
	"fmt"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
)

// bulkStory: after a weekend of silence, 2,000 messages wait.
func bulkStory(t *testing.T, s *scene) {
	var messages []message
	for i := range 2000 {
		messages = append(messages, message{name: fmt.Sprintf("bulk-%d", i), octets: report.Postfix(9, i, 2048), chunked: i%2 == 0})
	}
	boxes := map[*client]lab.Mailbox{}
	var all []lab.Mailbox
	slowestFirst := []*client{getmail, fdm, curl, fetchmail, mpop, pythonPoplib}
	for _, c := range slowestFirst {
		boxes[c] = s.box(t)
		all = append(all, boxes[c])
	}
	start := time.Now()
	s.send(t, "msgw1", all, messages)
	t.Logf("%d messages sent to %d mailboxes: %v", len(messages), len(all), time.Since(start).Round(100*time.Millisecond))
	each(t, "fetched", slowestFirst, func(t *testing.T, c *client) {
		u := c.new(t)
		u.add(s.site("msgw1"), boxes[c])
		start := time.Now()
		written := u.fetch(t)
		t.Logf("%s fetched and deleted %d messages, while others did: %v", c.name, len(written), time.Since(start).Round(10*time.Millisecond))
		c.compare(t, messages, written)
		if got := s.waiting(t, boxes[c]); got != emptyEverywhere {
			t.Errorf("msgw mailbox list says %s", got)
		}
	})
}
