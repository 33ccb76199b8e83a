//go:build peers

package acme

import (
	"crypto/x509"
	"net/textproto"
	"regexp"
	"testing"
	"time"
)

// TestRenew renews a certificate by hand, under a session of SMTP and one of POP3 that go
// on, and by Pebble's word that it is time to (RFC 9773).
func TestRenew(t *testing.T) {
	w := newWorld(t, setting{})
	n, box := w.file.Nodes[0], w.file.Mailboxes[0]
	before := w.serves(n, n.Host)
	w.serves(w.file.Nodes[1], w.file.Nodes[1].Host)
	check(w, n.Host, "challenge: what this node answers at _acme-challenge."+n.Host+". is found from outside")

	smtp, err := connect(t.Context(), n.Host, n.SMTP, w.issued, "220", "EHLO judge.example.net", "250", "STARTTLS", "220")
	if err != nil {
		t.Fatal(err)
	}
	defer smtp.Close()
	pop3, err := connect(t.Context(), n.Host, n.POP3S, w.issued)
	if err != nil {
		t.Fatal(err)
	}
	defer pop3.Close()
	sending, fetching := textproto.NewConn(smtp), textproto.NewConn(pop3)
	if err := talk(sending, "", "EHLO judge.example.net", "250", "MAIL FROM:<>", "250", "RCPT TO:<"+box.Address+">", "250", "DATA", "354", "Subject: half of it before"); err != nil {
		t.Fatalf("SMTP: %v", err)
	}
	if err := talk(fetching, "+OK", "USER "+box.ID, "+OK", "PASS "+box.Password, "+OK", "STAT", "+OK 0"); err != nil {
		t.Fatalf("POP3: %v", err)
	}

	begun := time.Now().Add(-time.Second)
	w.must("cert", "renew", "--dir", n.Dir)
	after, err := w.shown(n.Host, n.POP3S)
	if err != nil {
		t.Fatal(err)
	}
	if after.Equal(before) || spki(after) != spki(before) {
		t.Errorf("before %s with key %s, after %s with key %s; expected another certificate with the same key", serial(before), spki(before), serial(after), spki(after))
	}
	if again, err := smtpCertificate(t.Context(), n, w.issued); err != nil || !again.Equal(after) {
		t.Errorf("SMTP serves another certificate than POP3: %v", err)
	}
	if c := w.ordered(n, n.Host); !c.Served || c.Error != "" || c.Key != spki(after) || c.Last.Before(begun) || !c.NotAfter.Equal(after.NotAfter) {
		t.Errorf("cert list: %+v", c)
	}
	if got := w.pebble.said(t, "is a replacement of"); got != 1 {
		t.Errorf("Pebble was told of %d replacements, expected 1", got)
	}
	if err := talk(sending, "", "", "", "and half of it after", "", ".", "250", "QUIT", "221"); err != nil {
		t.Errorf("SMTP over the change: %v", err)
	}
	if err := talk(fetching, "", "NOOP", "+OK", "QUIT", "+OK"); err != nil {
		t.Errorf("POP3 over the change: %v", err)
	}

	// msgw asks when to renew right after it got a certificate, or within a minute. Now and
	// then it has asked already: then it is tried again with another one.
	held, by := []*x509.Certificate{before, after}, ""
	for attempt := 1; by == "" && attempt <= 3; attempt++ {
		w.must("cert", "renew", "--dir", n.Dir)
		now, err := w.shown(n.Host, n.POP3S)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.pebble.renewNow(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		held = append(held, now)
		w.must("dns", "set", "--tls-reports", "mailto:tls@example.com", "--dir", n.Dir) // it looks at everything after a change
		for end := time.Now().Add(20 * time.Second); by == "" && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if c, err := w.shown(n.Host, n.POP3S); err == nil && !c.Equal(now) {
				by = serial(c)
				held = append(held, c)
			}
		}
		t.Logf("attempt %d: Pebble wants %s renewed; renewed by itself: %q", attempt, serial(now), by)
	}
	if by == "" {
		t.Error("it does not renew by itself when the CA says that it is time")
	}
	last := held[len(held)-1]
	if spki(last) != spki(before) {
		t.Errorf("another key is served")
	}
	if issued, told := w.pebble.said(t, "Issued certificate serial"), w.pebble.said(t, "is a replacement of"); issued != len(held)+1 || told != len(held)-1 || w.pebble.said(t, "set INVALID") != 0 {
		t.Errorf("Pebble issued %d certificates, %d of them instead of another; expected %d and %d, and no challenge refused", issued, told, len(held)+1, len(held)-1)
	}
}

// check expects `msgw cert check` to find nothing wrong, and among it these lines.
func check(w *world, host string, lines ...string) {
	w.t.Helper()
	out := w.must("cert", "check", "--dir", w.file.Nodes[0].Dir)
	for _, line := range append(lines, "directory: "+directory+" answers", "certificate of "+host+": of Pebble ", "stored keys: ") {
		if !regexp.MustCompile(`(?m)^ok +` + regexp.QuoteMeta(line)).MatchString(out) {
			w.t.Errorf("no %q in\n%s", line, out)
		}
	}
}
