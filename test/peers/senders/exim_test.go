//go:build peers

package senders

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"msgw/internal/lab"
	"msgw/test/peers"
)

// newExim returns exim. The settings are those of
// https://www.exim.org/exim-html-4.96/doc/html/spec_html/.
func newExim() *mailServer {
	const config, program = "/etc/exim4/exim4.conf", "/usr/sbin/exim4"
	m := &mailServer{root: exim, addr: "127.0.2.26",
		verified: " CV=yes ", distrusts: "TLS session: (certificate verification failed)", deferred: " == "}
	m.tooLarge = "message is larger than this host takes"
	m.refusedBy = func(n lab.NodeRow) string { return n.Host + " [" + n.Addr + "]:25 Connection refused" }
	m.conf = func(t *testing.T, d delivery) {
		transport := []string{
			"driver = smtp",
			"hosts_try_chunking = *",
			"message_linelength_limit = 100M", // else what has longer lines than 998 octets is returned
		}
		if d.ca != "" {
			transport = append(transport, "hosts_require_tls = *", "tls_verify_certificates = "+d.ca,
				"tls_verify_hosts = *", "tls_verify_cert_hostnames = *")
		}
		if d.from != "" {
			transport = append(transport, "interface = "+d.from)
		}
		exim.Write(t, config, `
primary_hostname = `+senderHost+`
domainlist here = `+senderHost+`
local_interfaces = `+m.addr+`
tls_advertise_hosts =
log_selector = +tls_certificate_verified +outgoing_port
acl_smtp_rcpt = recipient
acl_smtp_data = accept
message_size_limit = 0
header_maxsize = 10M
smtputf8_advertise_hosts = *
# What comes in stays as it came: line ends above all.
spool_wireformat = yes
# Several connections at once, and none put off as the machine is busy.
smtp_accept_queue_per_connection = 0
keep_environment =
begin acl
recipient:
  accept control = dkim_disable_verify
begin routers
out:
  driver = dnslookup
  domains = !+here
  transport = out
  # The sites are on this machine, too.
  self = send
here:
  driver = accept
  transport = returned
begin transports
out:
  `+strings.Join(transport, "\n  ")+`
returned:
  driver = appendfile
  file = `+returned+`
  user = nobody
begin retry
* * F,2h,15m
`, 0o644)
	}
	var p *peers.Process
	m.up = func(t *testing.T) { p = peers.Start(t, "exim", exim.Command(t.Context(), program, "-bdf", "-q15m")) }
	m.down = func(t *testing.T) {
		if err := p.Stop(syscall.SIGTERM); err != nil {
			t.Logf("exim: %v", err)
		}
	}
	m.queue = func(t *testing.T) int {
		n, err := strconv.Atoi(strings.TrimSpace(must(t)(try(exim, "", program, "-bpc"))))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	m.flush = func(t *testing.T) { must(t)(try(exim, "", program, "-qff")) }
	// It leaves a host that failed alone until its retry time has come, which it keeps in
	// a hint database (exim_db(8)).
	m.pardon = func(t *testing.T) {
		hints, err := filepath.Glob(exim.Path("/var/spool/exim4/db/retry*"))
		for _, h := range hints {
			err = errors.Join(err, os.Remove(h))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m.log = func() string {
		b, _ := os.ReadFile(exim.Path("/var/log/exim4/mainlog"))
		return string(b)
	}
	return m
}

func TestExim(t *testing.T) {
	m := newExim()
	play(t, m, octets{
		ways:    []string{"DATA", "BDAT"},
		refuses: []string{"bare-lf-only by BDAT: 552"}, // "Message header not CRLF terminated"
		carries: []string{"20 MB", "BDAT", "LF dot", "NUL", "SMTPUTF8", "UTF-8 in the header", "bare CR", "bare LF", "empty body", "invalid UTF-8", "leading dot",
			"line over 64 KiB", "line over 998", "no CRLF at the end", "null sender", "several chunks", "two mailboxes"},
	})
	if log := m.log(); strings.Contains(log, "non-properly terminated") {
		t.Errorf("exim complains about the end of TLS sessions:\n%s", log[max(0, len(log)-2000):])
	}
}
