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

const getmailDeliver = "/usr/local/bin/getmail-deliver"

// getmailDeliverScript delivers as deliver does, once getmail sleeps. It waits for its delivery agent
// in a way that misses one that ends before it waits (getmailcore/baseclasses.py,
// ForkingBase: the signal handler notifies a condition that nobody waits for yet),
// and then gives up after its timeout and forgets what it has delivered.
const getmailDeliverScript = `#!/bin/sh
until read -r pid comm state rest <"/proc/$PPID/stat" && [ "$state" = S ]; do :; done
set -C
exec cat >"$1/$$"
`

// getmail, 6.18.11: configuration.txt of its documentation. It knows POP3 with TLS
// from the start only.
var getmail = &client{
	name:      "getmail",
	noSTLS:    true,
	distrusts: "certificate verify failed",
	misnamed:  "doesn't match",
	rejected:  "[AUTH]",
	inUse:     "[IN-USE]",
	command: func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd {
		args := []string{"--getmaildir", dir}
		for _, p := range profiles {
			kind, ca := "SimplePOP3SSLRetriever", "ca_certs = "+p.ca+"\n"
			if p.stls() {
				kind, ca = "SimplePOP3Retriever", ""
			}
			text := fmt.Sprintf("[retriever]\ntype = %s\nserver = %s\nport = %d\nusername = %s\npassword = %s\n%stimeout = %d\n", kind, p.host, p.port, p.user, p.password, ca, p.timeout)
			text += fmt.Sprintf("[destination]\ntype = MDA_external\npath = %s\narguments = (%q,)\n", getmailDeliver, p.mail)
			text += fmt.Sprintf("[options]\nread_all = false\ndelete = %s\ndelivered_to = false\nreceived = false\n", strings.ToLower(fmt.Sprint(!p.keep)))
			configure(t, dir+"/"+p.name, text)
			args = append(args, "--rcfile", p.name)
		}
		return as(ctx, "/usr/bin/getmail", args...)
	},
	sent:          everyLF,
	alike:         rewritten,
	inexpressible: map[string]string{"spaces at both ends": "values are stripped by configparser"},
	harmful:       map[string]string{"very-long-lines": "line too long"},
	changed: map[string]difference{"citadel": bareLF, "bare-lf": bareLF, "bare-lf-only": bareLF, "binary": anyEnd, "bare-cr": anyEnd, "cr-last": anyEnd,
		"dot-first": outerEnds, "header-only": outerEnds, "empty": outerEnds},
}

// rewritten is what remains comparable of a message that Python's email package has
// parsed and written again (https://docs.python.org/3.11/library/email.policy.html,
// compat32 and max_line_length): long header fields are folded anew, also those of
// MIME parts, and empty ones get a space behind the colon. So white space at the ends
// of lines does not count, nor where a field is folded. getmail replaces Return-Path
// (configuration.txt), so that neither counts.
func rewritten(b []byte) []byte {
	out := make([]byte, 0, len(b))
	header := true
	for line := range bytes.Lines(bytes.Clone(b)) {
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			header = false
		}
		if header && bytes.HasPrefix(line, []byte("Return-Path:")) {
			continue
		}
		text := bytes.TrimRight(line, "\r\n")
		line = append(bytes.TrimRight(text, " \t"), line[len(text):]...)
		if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') && len(out) > 0 {
			out = append(bytes.TrimRight(out, "\r\n"), ' ')
			line = bytes.TrimLeft(line, " \t")
		}
		out = append(out, line...)
	}
	return out
}

// anyEnd is the difference of who takes every CR and every LF for the end of a line.
var anyEnd = difference{"CR and LF end a line, alone or together", func(b []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), nil)
}}

// outerEnds is the difference of who writes an empty line behind a header, come what may.
var outerEnds = difference{"there is an empty line behind the header", func(b []byte) []byte { return bytes.Trim(b, "\r\n") }}
