//go:build peers

package archives

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
)

// session is a client's run that deletes, held by a relay at some point.
type session struct {
	*setup
	box    lab.Mailbox
	relay  *relay
	kill   context.CancelFunc
	ended  chan error
	before []string // UIDLs
	killed bool
}

// held starts a client through a relay and waits until it is held.
func (s *scene) held(t testing.TB, c *client, b lab.Mailbox, at point) *session {
	t.Helper()
	x := &session{setup: c.new(t), box: b, before: s.uidls(t, "msgw1", b), ended: make(chan error, 1)}
	n := s.site("msgw1")
	x.relay = s.relay(t, n, at)
	p := x.add(n, b)
	p.port, p.ca, p.timeout = x.relay.port, otherCA, 600
	ctx, kill := context.WithCancel(t.Context())
	x.kill = kill
	t.Cleanup(kill)
	cmd, out := x.start(ctx, t)
	go func() { x.ended <- cmd.Wait() }()
	x.relay.awaitHeld(t, x.setup, x.ended, out)
	if at.octets == 0 && x.relay.said("DELE") < len(x.before) {
		t.Errorf("%s said DELE %d times, and QUIT, for %d messages", c.name, x.relay.said("DELE"), len(x.before))
	}
	return x
}

// again runs the client once more, without relay and with what it remembers, and
// expects that it then has everything and that all is deleted.
func (x *session) again(t *testing.T, s *scene, messages []message) {
	t.Helper()
	if after := sorted(s.uidls(t, "msgw1", x.box)); !slices.Equal(after, sorted(x.before)) {
		t.Errorf("%d messages waited before %s broke off, %d wait now", len(x.before), x.name, len(after))
	}
	first := x.written(t)
	x.profiles[0].port, x.profiles[0].ca = 995, goodCA
	second := x.fetch(t)
	t.Logf("%s wrote %d messages, whole or not, before, and %d after", x.name, len(first), len(second))
	if x.killed {
		x.compare(t, messages, second)
	} else {
		// It had time to note what it has, and need not fetch that again.
		x.compare(t, messages, x.whole(messages, append(first, second...)))
	}
	if got := s.waiting(t, x.box); got != emptyEverywhere {
		t.Errorf("msgw mailbox list says %s", got)
	}
}

// whole returns what of written is a message, each once: not what was broken off, and
// no duplicates, which are allowed after a failure.
func (c *client) whole(messages []message, written [][]byte) [][]byte {
	var out [][]byte
	for _, m := range messages {
		i := slices.IndexFunc(written, func(w []byte) bool { return c.wrote(m, w) })
		if i >= 0 {
			out = append(out, written[i])
		}
	}
	return out
}

// large are some messages of which one takes long to fetch.
func large() []message {
	var all []message
	for i := range 3 {
		all = append(all, message{name: fmt.Sprintf("cut-%d", i), octets: report.New(10, i, 3000)})
	}
	return append(all, message{name: "cut-20MB", octets: report.New(10, 3, 20<<20)})
}

const inLarge = 8 << 20 // octets after which a session is within the large message

// cutStory: the archive's machine loses power in mid-session.
func cutStory(t *testing.T, s *scene) {
	messages := large()
	boxes := map[*client][]lab.Mailbox{}
	var all []lab.Mailbox
	for _, c := range clients() {
		boxes[c] = []lab.Mailbox{s.box(t), s.box(t)}
		all = append(all, boxes[c]...)
	}
	s.send(t, "msgw1", all, messages[:3])
	s.send(t, "msgw1", all, messages[3:])
	for i, at := range []point{{octets: inLarge}, {}} {
		each(t, []string{"within RETR", "before QUIT"}[i], clients(), func(t *testing.T, c *client) {
			x := s.held(t, c, boxes[c][i], at)
			x.killed = true
			x.kill()
			if err := <-x.ended; err == nil {
				t.Errorf("%s ended well before it was killed", c.name)
			}
			x.relay.cut()
			x.again(t, s, messages)
		})
	}
}

// nodeStory: the site loses power while all clients fetch, some of them within a
// message, some with everything said but QUIT.
func nodeStory(t *testing.T, s *scene) {
	messages := large()
	var all []lab.Mailbox
	for range 2 * len(clients()) {
		all = append(all, s.box(t))
	}
	s.send(t, "msgw1", all, messages[:3])
	s.send(t, "msgw1", all, messages[3:])
	var sessions []*session
	for i, c := range clients() {
		sessions = append(sessions, s.held(t, c, all[2*i], point{octets: inLarge}), s.held(t, c, all[2*i+1], point{}))
	}
	s.node(t, "kill", "msgw1")
	for _, x := range sessions {
		x.relay.letGo()
		if err := <-x.ended; err == nil {
			t.Logf("%s ended well though the site was gone", x.name)
		}
	}
	s.node(t, "start", "msgw1")
	for i, x := range sessions {
		t.Run(fmt.Sprintf("%s %d", x.name, i%2), func(t *testing.T) {
			t.Parallel()
			x.again(t, s, messages)
		})
	}
}
