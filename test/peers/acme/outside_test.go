//go:build peers

package acme

import (
	"fmt"
	"strings"
	"testing"

	"msgw/internal/lab"
)

// TestOutside gives a site a host name in the parent zone, where an alias of its challenge
// name leads into the zone. Nothing else is needed there.
func TestOutside(t *testing.T) {
	const host = "msgw1.example.com"
	lines := ""
	w := newWorld(t, setting{
		edit: func(n lab.NodeRow, text string) string {
			if n.Name != "msgw1" {
				lines += fmt.Sprintf("%s. NS %s.\n%s. A %s\n", lab.Zone, n.Host, n.Host, n.Addr)
				return text
			}
			lines += fmt.Sprintf("%s. NS %s.\n%s. A %s\n", lab.Zone, host, host, n.Addr)
			lines += fmt.Sprintf("_acme-challenge.%s. CNAME msgw1._acme-challenge.%s.\n", host, lab.Zone)
			return strings.Replace(text, "[public]\n", "[public]\nhost = \""+host+"\"\n", 1)
		},
		lines: func(lab.File) string { return lines },
	})
	n, other := w.file.Nodes[0], w.file.Nodes[1]
	cert := w.serves(n, host)
	w.serves(other, other.Host)
	if c := w.ordered(n, host); !c.Served || c.Error != "" || c.Key != spki(cert) {
		t.Errorf("cert list: %+v", c)
	}
	w.must("cert", "renew", host, "--dir", n.Dir)
	w.serves(n, host, cert)
	check(w, host, "challenge: what this node answers at _acme-challenge."+host+". is found from outside")
	if refused := w.pebble.said(t, "set INVALID"); refused != 0 {
		t.Errorf("Pebble refused %d challenges", refused)
	}
	t.Log(w.must("cert", "list", "--dir", n.Dir))
}
