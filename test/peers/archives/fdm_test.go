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

// fdm(1) and fdm.conf(5), 1.9.
var fdm = &client{
	name: "fdm",
	command: func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd {
		text := fmt.Sprintf("set no-received\nset verify-certificates\nset maximum-size 1G\nset timeout %d\nset allow-multiple\n", profiles[0].timeout)
		ca := goodCA
		for _, p := range profiles {
			// What it has in its cache it leaves at the server, also if it shall delete.
			kind, cache, tls, keep := "pop3s", "", "", ""
			if p.stls() {
				kind, tls = "pop3", " starttls"
			}
			if p.keep {
				cache, keep = fmt.Sprintf(" new-only cache %q", dir+"/cache-"+p.name), " keep"
			}
			text += fmt.Sprintf("account %q %s server %q port %d user %q pass \"%s\"%s%s%s\n",
				p.name, kind, p.host, p.port, p.user, fdmQuote(p.password), cache, tls, keep)
			text += fmt.Sprintf("action %q pipe \"%s\"\nmatch account %q action %q\n", p.name, fdmQuote(deliver(p.mail)), p.name, p.name)
			ca = p.ca
		}
		configure(t, dir+"/fdm.conf", text)
		cmd := as(ctx, "/usr/bin/fdm", "-f", dir+"/fdm.conf", "fetch")
		// It takes OpenSSL's default certificates, which OpenSSL takes from there.
		cmd.Env = append(cmd.Env, "SSL_CERT_FILE="+ca)
		return cmd
	},
	sent:    everyLF,
	changed: map[string]difference{"citadel": bareLF, "bare-lf": bareLF, "bare-lf-only": bareLF, "binary": {"lines with NUL are lost", dropNUL}},
	// It verifies the chain of certificates, and asks for no name.
	anyName:   true,
	distrusts: "certificate verification failed",
	rejected:  "[AUTH]",
	inUse:     "[IN-USE]",
	// Its exit code is 0 all the same.
	failed: func(out string) bool { return strings.Contains(out, "aborted") },
}

// fdmQuote escapes what is special in its strings, and in what tags may be put in.
func fdmQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, `%`, `\%\%`).Replace(s)
}

// dropNUL leaves of the message "binary" what is in front of its first NUL, and the end.
func dropNUL(b []byte) []byte {
	before, _, _ := bytes.Cut(b, []byte{0})
	return append(bytes.TrimRight(before, "\r\n"), "\r\n"...)
}
