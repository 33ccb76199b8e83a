//go:build peers

package senders

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"msgw/internal/lab/sender"
)

// play lets a mail server through all that may happen to a sender of journals.
func play(t *testing.T, m *mailServer, o octets) {
	m.root.Versions(t)
	w := newWorld(t)
	chapter := func(name string, tell func(t *testing.T)) {
		if !t.Run(name, tell) {
			t.FailNow() // what follows would begin with a queue in disorder
		}
	}
	m.start(t, delivery{ca: strangeCA(t, m.root)})
	chapter("a CA that nobody trusts", func(t *testing.T) { distrust(t, w, m, delivery{ca: w.trust(t, m.root)}) })
	chapter("both sites", func(t *testing.T) { bothSites(t, w, m) })
	chapter("refusals", func(t *testing.T) { refusals(t, w, m) })
	if m.tooLarge != "" {
		chapter("too large", func(t *testing.T) { tooLarge(t, w, m) })
	}
	chapter("sites stop", func(t *testing.T) { sitesStop(t, w, m) })
	m.start(t, delivery{from: recordedFrom})
	chapter("octet by octet", func(t *testing.T) { m.octetByOctet(t, w, o) })
}

// distrust: a mail server that knows another CA gives its mail to nobody, and keeps it.
// It is told of the lab's CA, and the mail goes out.
func distrust(t *testing.T, w *world, m *mailServer, secure delivery) {
	box, b := w.box(t), &batch{seed: 1}
	m.give(t, b, 2, box.Address)
	m.logs(t, 0, m.distrusts, 1) // the second message may find that the host failed and not try it
	m.waiting(t, 2)
	if got := w.fetch(t, box); len(got) > 0 {
		t.Errorf("%d messages went to a site whose certificate cannot be verified", len(got))
	}
	if strings.Contains(m.log(), m.verified) {
		t.Errorf("a certificate was verified by another CA")
	}
	m.start(t, secure)
	m.resumes(t)
	b.complete(t, w.fetch(t, box))
	m.logs(t, 0, m.verified, 1)
	m.nothingReturned(t)
}

// bothSites: 60 messages leave the queue for the sites that MX names, over TLS that is
// verified. Both have the same weight, so both get some.
func bothSites(t *testing.T, w *world, m *mailServer) {
	m.pardon(t)
	box, b := w.box(t), &batch{seed: 2}
	m.give(t, b, 60, box.Address)
	m.waiting(t, 0)
	sites := b.complete(t, w.fetch(t, box))
	t.Logf("of %d messages %v", b.sent, sites)
	if len(sites) != 2 {
		t.Errorf("only %v", sites)
	}
	m.nothingReturned(t)
}

// refusals: mail to an unknown mailbox comes back at once, mail to a suspended one waits
// until it takes mail again, and neither harms another recipient of the same message.
func refusals(t *testing.T, w *world, m *mailServer) {
	box, b := w.box(t), &batch{seed: 3}
	unknown := "mbx-" + strings.Repeat("0", 32) + "@" + w.file.Zone
	m.give(t, b, 1, box.Address, unknown)
	m.waiting(t, 0)
	b.complete(t, w.fetch(t, box))
	back := m.bounces(t)
	if !strings.Contains(back, "no such mailbox here") || !strings.Contains(back, unknown) || strings.Contains(back, box.Address) {
		t.Errorf("returned to the sender:\n%.4000s", back)
	}
	m.forget(t)

	suspended, s := w.box(t), &batch{seed: 4}
	w.operator(t, "mailbox", "suspend", suspended.ID)
	from := len(m.log())
	m.give(t, s, 3, suspended.Address)
	m.logs(t, from, "mailbox is suspended", 1) // those behind the first may not be tried at all
	m.waiting(t, 3)
	if got := w.fetch(t, suspended); len(got) > 0 {
		t.Errorf("a suspended mailbox took %d messages", len(got))
	}
	w.operator(t, "mailbox", "activate", suspended.ID)
	m.pardon(t)
	m.resumes(t)
	s.complete(t, w.fetch(t, suspended))
	m.nothingReturned(t)
}

// tooLarge: the sites say how much they take at most, and a message beyond that comes
// back at once.
func tooLarge(t *testing.T, w *world, m *mailServer) {
	const limit = 250 << 20
	box := w.box(t)
	message := slices.Concat([]byte("Subject: large\r\n\r\n"), bytes.Repeat([]byte(strings.Repeat("x", 76)+"\r\n"), limit/78+1))
	if _, err := m.client(t).Send(t.Context(), sender.Envelope{From: "large@" + senderHost, To: []string{box.Address}}, message); err != nil {
		t.Fatal(err)
	}
	m.waiting(t, 0)
	back := m.bounces(t)
	if !strings.Contains(back, m.tooLarge) || !strings.Contains(back, box.Address) {
		t.Errorf("returned to the sender:\n%.4000s", back)
	}
	if got := w.fetch(t, box); len(got) > 0 {
		t.Error("it is in the archive")
	}
	m.forget(t)
}

// sitesStop: one site stops, then the other, then both, and the resolver goes on naming
// the two as before. While one is left everything reaches it in the same delivery; while
// none is, everything waits.
func sitesStop(t *testing.T, w *world, m *mailServer) {
	box, b := w.box(t), &batch{seed: 5}
	for _, dead := range w.file.Nodes {
		w.remember(t)
		m.pardon(t)
		w.stop(t, dead)
		from := len(m.log())
		// Which host comes first is drawn by lot; the story is told when it was the dead one.
		for n := 0; !strings.Contains(m.log()[from:], m.refusedBy(dead)); n++ {
			if n == 30 {
				t.Fatalf("%s was never tried", dead.Name)
			}
			m.give(t, b, 4, box.Address)
			m.waiting(t, 0)
		}
		if log := m.log()[from:]; strings.Contains(log, m.deferred) {
			t.Errorf("with %s stopped, mail was put off:\n%.4000s", dead.Name, log)
		}
		mx, ttl := w.exchangers(t)
		t.Logf("%s stopped, MX for %d s more %v", dead.Name, ttl, mx)
		if len(mx) != 2 {
			t.Errorf("the resolver names %v", mx)
		}
		w.start(t, dead)
	}
	w.remember(t)
	m.pardon(t)
	for _, n := range w.file.Nodes {
		w.stop(t, n)
	}
	from := len(m.log())
	m.give(t, b, 3, box.Address)
	m.logs(t, from, m.deferred, 3)
	m.waiting(t, 3)
	for _, n := range w.file.Nodes {
		w.start(t, n)
	}
	// A resolver that asked meanwhile shuns both for up to infra-host-ttl, 15 minutes
	// (https://nlnetlabs.nl/documentation/unbound/info-timeout/); the story is not that long.
	w.remember(t)
	m.pardon(t)
	m.resumes(t)
	b.complete(t, w.fetch(t, box))
	m.nothingReturned(t)
}

func (m *mailServer) nothingReturned(t *testing.T) {
	t.Helper()
	if got := m.bounces(t); got != "" {
		t.Errorf("returned to the sender:\n%.4000s", got)
	}
}

// operator runs a command at the first site.
func (w *world) operator(t *testing.T, args ...string) {
	t.Helper()
	if out, err := w.Msgw(append(args, "--dir", w.file.Nodes[0].Dir)...); err != nil {
		t.Fatalf("msgw %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
