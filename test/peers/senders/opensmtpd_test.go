//go:build peers

package senders

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"msgw/internal/lab"
	"msgw/test/peers"
)

// newOpenSMTPD returns OpenSMTPD. The settings are those of smtpd.conf(5),
// https://man.openbsd.org/OpenBSD-6.8/smtpd.conf.5.
func newOpenSMTPD() *mailServer {
	const control, bundle = "/usr/sbin/smtpctl", "/etc/ssl/certs/ca-certificates.crt"
	m := &mailServer{root: opensmtpd, addr: "127.0.2.27",
		verified: "mta server-cert-check result=\"success\"", distrusts: "mta error reason=SSL certificate check failed", deferred: "result=\"TempFail\""}
	m.refusedBy = func(n lab.NodeRow) string { return "Disabling route [] <-> " + n.Addr }
	m.conf = func(t *testing.T, d delivery) {
		relay := "relay helo " + senderHost
		if d.ca != "" {
			relay += " tls"
			b, err := os.ReadFile(opensmtpd.Path(d.ca))
			if err != nil {
				t.Fatal(err)
			}
			opensmtpd.Write(t, bundle, string(b), 0o644)
		}
		if d.from != "" {
			relay += " src " + d.from
		}
		opensmtpd.Write(t, "/etc/smtpd.conf", `
smtp max-message-size 100M
mta limit conn-delay-relay 0 reconn-delay-route 0 session-keepalive 1
table box { "@" = "nobody" }
listen on `+m.addr+` hostname `+senderHost+`
action "out" `+relay+`
action "returned" mda "cat >>`+returned+`" virtual <box>
match from any for domain `+senderHost+` action "returned"
match from any for any action "out"
`, 0o600)
	}
	var p *peers.Process
	var logged string
	m.up = func(t *testing.T) {
		p = peers.Start(t, "opensmtpd", opensmtpd.Command(t.Context(), "/usr/sbin/smtpd", "-d"))
	}
	m.down = func(t *testing.T) {
		if err := p.Stop(syscall.SIGTERM); err != nil {
			t.Logf("opensmtpd: %v", err)
		}
		logged = m.log()
		p = nil
	}
	m.queue = func(t *testing.T) int {
		return strings.Count(must(t)(try(opensmtpd, "", control, "show", "queue")), "\n")
	}
	m.flush = func(t *testing.T) { must(t)(try(opensmtpd, "", control, "schedule", "all")) }
	// It leaves a host that failed alone for a quarter of a minute and longer, and waits
	// 10 s before it looks for another way. Both are forgotten at a restart.
	m.pardon = func(t *testing.T) {
		m.down(t)
		m.up(m.t)
		m.listening(t)
	}
	m.log = func() string {
		if p == nil {
			return logged
		}
		b, _ := os.ReadFile(p.Log)
		return logged + string(b)
	}
	return m
}

func TestOpenSMTPD(t *testing.T) {
	play(t, newOpenSMTPD(), octets{
		ways: []string{"DATA"},
		refuses: []string{
			"smtputf8 by DATA: not offered",
			"very-long-lines by DATA: 500",
			// It takes LF dot CRLF for the end of a message.
			"lf-dot by DATA: 500",
			// It wants a header.
			"dot-first by DATA: 550",
		},
		carries: []string{"20 MB", "DATA", "bare CR", "empty body", "header only", "invalid UTF-8", "leading dot", "line over 998", "null sender", "two mailboxes"},
	})
}
