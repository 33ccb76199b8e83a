//go:build peers

package archives

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// fetchmail(1), 6.4.37. With keep it fetches with TOP, else, with fetchall, with RETR.
var fetchmail = &client{
	name:   "fetchmail",
	noMail: 1, // EXIT CODES
	command: func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd {
		text := fmt.Sprintf("set no bouncemail\nset invisible\nset idfile %q\nset pidfile %q\n", dir+"/ids", dir+"/pid")
		for _, p := range profiles {
			text += fmt.Sprintf("poll %q via %q protocol POP3 service %d uidl bad-header accept timeout %d:\n", p.name, p.host, p.port, p.timeout)
			text += fmt.Sprintf(" user %q password \"%s\" is %q here\n", p.user, fetchmailQuote(p.password), archiveUser)
			if !p.stls() {
				text += " ssl\n"
			}
			// Without "ssl" a protocol makes STLS mandatory (--sslproto).
			text += fmt.Sprintf(" sslproto \"TLS1.2+\" sslcertck sslcertfile %q\n", p.ca)
			// What it may change, it shall not.
			text += " no rewrite no stripcr no forcecr no mimedecode no dropstatus no dropdelivered\n"
			if p.keep {
				text += " keep\n"
			} else {
				text += " nokeep fetchall\n"
			}
			text += fmt.Sprintf(" mda \"%s\"\n", deliver(p.mail))
		}
		configure(t, dir+"/fetchmailrc", text)
		return as(ctx, "/usr/bin/fetchmail", "--nodetach", "-f", dir+"/fetchmailrc")
	},
	distrusts: "certificate verify failed",
	misnamed:  "hostname mismatch",
	rejected:  "Authorization failure",
	inUse:     "IN-USE",
	sent:      func(w []byte) []byte { return w },
	changed: map[string]difference{
		"citadel":         {"the empty line behind the header becomes CRLF", crlf},
		"bare-lf-only":    {"the empty line behind the header becomes CRLF", crlf},
		"header-only":     {"the header gets an empty line", trimEnd},
		"dot-first":       replaced("dots stay doubled, as it is all header to it", "..\r\n...\r\n..\r\n\r\n", ".\r\n..\r\n.\r\n"),
		"leading-dots":    {"a dot that begins a line of the header stays doubled", func(b []byte) []byte { return bytes.TrimLeft(b, ".") }},
		"empty":           {"a mail without header is replaced by a notice", noticeToNothing},
		"long-lines":      {"lines are cut after 8191 octets, and something put in", graphic},
		"very-long-lines": {"lines are cut after 8191 octets, and something put in", graphic},
	},
}

// fetchmailQuote escapes what is special in a quoted string of its configuration.
func fetchmailQuote(s string) string {
	return strings.NewReplacer(`\`, `\x5c`, `"`, `\x22`).Replace(s)
}

func trimEnd(b []byte) []byte { return bytes.TrimRight(b, "\r\n") }

// noticeToNothing makes nothing of a notice, and of what is nothing but line ends.
func noticeToNothing(b []byte) []byte {
	if bytes.HasPrefix(b, []byte("From: FETCHMAIL-DAEMON\r\n")) && bytes.Contains(b, []byte("\r\nSubject: Headerless mail from ")) {
		return nil
	}
	return trimEnd(b)
}

// graphic is what is visible of a message of ASCII.
func graphic(b []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f {
			return r
		}
		return -1
	}, b)
}
