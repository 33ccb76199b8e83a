//go:build peers

package archives

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
)

// After a week of silence many messages wait. Clients that start a program for each
// message get fewer, unless MSGW_BULK_MESSAGES says how many: forking takes their time.
const manyMessages, fewerMessages = 10_000, 2_000

// fetchMany are the clients that write messages themselves.
var fetchMany = []*client{curl, pythonPoplib}

// bulkStory: clients that keep mail at the server first and delete later, or delete at
// once, empty large maildrops.
func bulkStory(t *testing.T, s *scene) {
	fewer := fewerMessages
	if v := os.Getenv("MSGW_BULK_MESSAGES"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > manyMessages {
			t.Fatalf("MSGW_BULK_MESSAGES: want 1 to %d, got %q", manyMessages, v)
		}
		fewer = n
	}
	var messages []message
	for i := range manyMessages {
		messages = append(messages, message{name: fmt.Sprintf("bulk-%d", i), octets: report.Postfix(9, i, 1024), chunked: i%2 == 0})
	}
	boxes := map[*client]lab.Mailbox{}
	var all, many []lab.Mailbox
	slowestFirst := []*client{getmail, fdm, curl, fetchmail, mpop, pythonPoplib}
	for _, c := range slowestFirst {
		boxes[c] = s.box(t)
		all = append(all, boxes[c])
		if slices.Contains(fetchMany, c) {
			many = append(many, boxes[c])
		}
	}
	start := time.Now()
	s.send(t, "msgw1", all, messages[:fewer])
	s.send(t, "msgw1", many, messages[fewer:])
	t.Logf("%d messages sent to %d mailboxes, %d to %d: %v", len(messages), len(many), fewer, len(all)-len(many), time.Since(start).Round(100*time.Millisecond))
	each(t, "fetched", slowestFirst, func(t *testing.T, c *client) {
		u, waiting, keep := c.new(t), messages[:fewer], false
		if slices.Contains(fetchMany, c) {
			waiting, keep = messages, true
		}
		p := u.add(s.site("msgw1"), boxes[c])
		p.keep = keep
		start := time.Now()
		c.compare(t, waiting, u.fetch(t))
		t.Logf("%s fetched %d messages, while others did, keep is %v: %v", c.name, len(waiting), keep, time.Since(start).Round(10*time.Millisecond))
		if keep {
			if got, want := s.waiting(t, boxes[c]), fmt.Sprintf("msgw1: %d, msgw2: 0", len(waiting)); got != want {
				t.Errorf("msgw mailbox list says %s, want %s", got, want)
			}
			start := time.Now()
			p.keep = false
			c.compare(t, nil, u.fetch(t)) // it has them all
			t.Logf("%s deleted %d messages: %v", c.name, len(waiting), time.Since(start).Round(10*time.Millisecond))
		}
		if got := s.waiting(t, boxes[c]); got != emptyEverywhere {
			t.Errorf("msgw mailbox list says %s", got)
		}
	})
}
