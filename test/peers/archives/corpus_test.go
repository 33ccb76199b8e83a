//go:build peers

package archives

import (
	"fmt"
	"slices"
	"testing"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
)

const emptyEverywhere = "msgw1: 0, msgw2: 0"

// corpusStory: an archive that keeps mail at the server, for days, over a restart of
// the site; and one that deletes.
func corpusStory(t *testing.T, s *scene) {
	messages := corpusMessages()
	boxes := map[*client]lab.Mailbox{}
	for _, c := range clients() {
		boxes[c] = s.box(t)
	}
	s.sendUnlessHarmful(t, boxes, messages)

	keepers := map[*client]*setup{}
	for _, c := range clients() {
		u := c.new(t)
		p := u.add(s.site("msgw1"), boxes[c])
		p.keep = true
		if !c.noSTLS {
			p.port = 110
		}
		keepers[c] = u
	}
	each(t, "keep", clients(), func(t *testing.T, c *client) {
		c.compare(t, c.harmless(messages), keepers[c].fetch(t))
		c.compare(t, nil, keepers[c].fetch(t))
	})

	var more []message
	for i := range 2 {
		more = append(more, message{name: fmt.Sprintf("new-%d", i), octets: report.New(3, i, 4000)})
	}
	before := map[*client][]string{}
	s.sendUnlessHarmful(t, boxes, more)
	each(t, "only what is new", clients(), func(t *testing.T, c *client) { c.compare(t, more, keepers[c].fetch(t)) })
	for c, b := range boxes {
		before[c] = s.uidls(t, "msgw1", b)
	}
	s.node(t, "stop", "msgw1")
	s.node(t, "start", "msgw1")
	each(t, "nothing new after a restart", clients(), func(t *testing.T, c *client) {
		// Messages have a number in a session only, and it may be another one now.
		after := sorted(s.uidls(t, "msgw1", boxes[c]))
		if !slices.Equal(after, sorted(before[c])) || len(after) != len(c.harmless(messages))+len(more) {
			t.Errorf("UIDLs were\n%q, are\n%q", before[c], after)
		}
		c.compare(t, nil, keepers[c].fetch(t))
	})

	each(t, "delete", clients(), func(t *testing.T, c *client) {
		u := c.new(t)
		u.add(s.site("msgw1"), boxes[c]).user = boxes[c].Address // the mailbox id with @zone
		c.compare(t, append(c.harmless(messages), more...), u.fetch(t))
		if left := s.uidls(t, "msgw1", boxes[c]); len(left) > 0 {
			t.Errorf("left at the server: %q", left)
		}
		if got := s.waiting(t, boxes[c]); got != emptyEverywhere {
			t.Errorf("msgw mailbox list says %s", got)
		}
		c.compare(t, nil, u.fetch(t))
	})

	for _, c := range append(clients(), stockPoplib) {
		c.meetHarmful(t, s, messages)
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

// each runs a part for several clients at the same time.
func each(t *testing.T, name string, clients []*client, part func(t *testing.T, c *client)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		for _, c := range clients {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				part(t, c)
			})
		}
	})
}

// sendUnlessHarmful sends messages to every client's mailbox, but none that is known
// to stop the client.
func (s *scene) sendUnlessHarmful(t testing.TB, boxes map[*client]lab.Mailbox, messages []message) {
	t.Helper()
	var all []lab.Mailbox
	for _, b := range boxes {
		all = append(all, b)
	}
	var harmless []message
	for _, m := range messages {
		var to []lab.Mailbox
		for c, b := range boxes {
			if _, ok := c.harmful[m.name]; !ok {
				to = append(to, b)
			}
		}
		if len(to) == len(all) {
			harmless = append(harmless, m)
		} else {
			s.send(t, "msgw1", to, []message{m})
		}
	}
	s.send(t, "msgw1", all, harmless)
}

// harmless returns the messages that do not stop the client.
func (c *client) harmless(messages []message) []message {
	var out []message
	for _, m := range messages {
		if _, ok := c.harmful[m.name]; !ok {
			out = append(out, m)
		}
	}
	return out
}

// meetHarmful shows that what is said to stop a client does: with such a message in
// the middle it does not get at all there is, and says why. It keeps mail at the
// server, where nothing is lost.
func (c *client) meetHarmful(t *testing.T, s *scene, messages []message) {
	for _, m := range messages {
		says, ok := c.harmful[m.name]
		if !ok {
			continue
		}
		b := s.box(t)
		for i, m := range []message{{name: "before", octets: report.New(4, 0, 3000)}, m,
			{name: "after", octets: report.New(4, 1, 3000)}, {name: "last", octets: report.New(4, 2, 3000)}} {
			s.send(t, "msgw1", []lab.Mailbox{b}, []message{m})
			if got := len(s.uidls(t, "msgw1", b)); got != i+1 {
				t.Fatalf("%d messages wait, want %d", got, i+1)
			}
		}
		u := c.new(t)
		u.add(s.site("msgw1"), b).keep = true
		out, err := u.run(t)
		n := len(u.written(t))
		t.Logf("%s wrote %d of 4 messages with %s among them: %v", c.name, n, m.name, err)
		if n >= 3 || !contains(out, says) {
			t.Errorf("%s: %s does not stop it any more, or it does not say %q", c.name, m.name, says)
		}
		if got := len(s.uidls(t, "msgw1", b)); got != 4 {
			t.Errorf("%d messages wait, want 4", got)
		}
	}
}
