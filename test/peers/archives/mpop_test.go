//go:build peers

package archives

import (
	"context"
	"fmt"
	"os/exec"
	"testing"
)

// mpop(1), 1.4.18. It pipelines its commands.
var mpop = &client{
	name: "mpop",
	command: func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd {
		text := ""
		for _, p := range profiles {
			onOff := map[bool]string{true: "on", false: "off"}
			text += fmt.Sprintf("account %s\nhost %s\nport %d\nuser %s\npassword \"%s\"\n", p.name, p.host, p.port, p.user, p.password)
			text += fmt.Sprintf("tls on\ntls_starttls %s\ntls_trust_file %s\ntimeout %d\n", onOff[p.stls()], p.ca, p.timeout)
			text += fmt.Sprintf("keep %s\nreceived_header off\nuidls_file %s/uidls-%s\n", onOff[p.keep], dir, p.name)
			text += fmt.Sprintf("delivery mda %s\n\n", deliver(p.mail))
		}
		configure(t, dir+"/mpoprc", text)
		return as(ctx, "/usr/bin/mpop", "--file", dir+"/mpoprc", "--half-quiet", "--all-accounts")
	},
	distrusts: "issuer is unknown",
	misnamed:  "name in the certificate does not match",
	rejected:  "authentication failed",
	inUse:     "authentication failed", // no more than that
	sent:      everyLF,                 // to a delivery agent it writes lines as mbox(5) and maildir have them
	changed:   map[string]difference{"citadel": bareLF, "bare-lf": bareLF, "bare-lf-only": bareLF, "binary": bareLF},
}
