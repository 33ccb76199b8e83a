//go:build peers

package senders

import (
	"os"
	"strings"
	"testing"

	"msgw/internal/lab"
	"msgw/test/peers"
)

// newPostfix returns Postfix. The settings are those of
// http://www.postfix.org/postconf.5.html.
func newPostfix() *mailServer {
	m := &mailServer{root: postfix, addr: "127.0.2.25",
		verified: "Verified TLS connection established to msgw", distrusts: "status=deferred (Server certificate not verified)", deferred: "status=deferred"}
	m.tooLarge = "exceeds size limit 262144000 of server"
	m.refusedBy = func(n lab.NodeRow) string { return "connect to " + n.Host + "[" + n.Addr + "]:25: Connection refused" }
	m.conf = func(t *testing.T, d delivery) {
		settings := []string{
			"compatibility_level = 3.6",
			"maillog_file = /var/log/postfix.log",
			"myhostname = " + senderHost,
			"mydestination =",
			"inet_protocols = ipv4",
			"inet_interfaces = " + m.addr,
			"mynetworks = 127.0.0.0/8",
			"smtpd_relay_restrictions = permit_mynetworks, reject",
			"message_size_limit = 0",
			"smtputf8_enable = yes",
			// Long lines stay whole: else Postfix breaks them at 998 octets.
			"smtp_line_length_limit = 0",
			"cleanup_replace_stray_cr_lf = no", // else a CR or LF by itself becomes a space
			"smtp_tls_loglevel = 1",
			"virtual_mailbox_domains = " + senderHost,
			"virtual_mailbox_maps = static:box",
			"virtual_mailbox_base = /var/returned",
			"virtual_mailbox_limit = 0",
			"virtual_uid_maps = static:65534",
			"virtual_gid_maps = static:65534",
		}
		if d.ca != "" {
			// The name in the certificate must be below the domain of the mailbox.
			settings = append(settings, "smtp_tls_security_level = secure", "smtp_tls_CAfile = "+d.ca)
		}
		if d.from != "" {
			settings = append(settings, "smtp_bind_address = "+d.from)
		}
		postfix.Write(t, "/etc/postfix/main.cf", strings.Join(settings, "\n")+"\n", 0o644)
		// The chroot that Debian runs the daemons in has its own resolv.conf.
		postfix.Write(t, "/var/spool/postfix/etc/resolv.conf", "nameserver "+peers.ResolverAddr+"\n", 0o644)
	}
	m.up = func(t *testing.T) { must(t)(try(postfix, "", "/usr/sbin/postfix", "start")) }
	m.down = func(t *testing.T) { must(t)(try(postfix, "", "/usr/sbin/postfix", "stop")) }
	m.queue = func(t *testing.T) int {
		return strings.Count(must(t)(try(postfix, "", "/usr/sbin/postqueue", "-j")), `"queue_id"`)
	}
	m.flush = func(t *testing.T) { must(t)(try(postfix, "", "/usr/sbin/postqueue", "-f")) }
	m.pardon = func(*testing.T) {}
	m.log = func() string {
		b, _ := os.ReadFile(postfix.Path("/var/log/postfix.log"))
		return string(b)
	}
	return m
}

func TestPostfix(t *testing.T) {
	play(t, newPostfix(), octets{
		ways: []string{"DATA", "BDAT"},
		carries: []string{"20 MB", "BODY=8BITMIME", "DATA", "NUL", "SMTPUTF8", "UTF-8 in the header", "bare CR", "empty body", "header only",
			"invalid UTF-8", "leading dot", "line over 64 KiB", "line over 998", "null sender", "two mailboxes"},
	})
}
