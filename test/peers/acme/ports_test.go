//go:build peers

package acme

import (
	"strings"
	"testing"

	"msgw/internal/lab"
)

// TestPorts proves one site's name by http-01 and the other's by tls-alpn-01, at the ports
// where Pebble asks.
func TestPorts(t *testing.T) {
	w := newWorld(t, setting{edit: func(n lab.NodeRow, text string) string {
		listen, challenge := `http = "`+n.Addr+`:5002"`, "http-01"
		if n.Name == "msgw2" {
			listen, challenge = `https = "`+n.Addr+`:5001"`, "tls-alpn-01"
		}
		return strings.Replace(text, "[listen]\n", "[acme]\nchallenge = \""+challenge+"\"\n\n[listen]\n"+listen+"\n", 1)
	}})
	for i, challenge := range []string{"http-01", "tls-alpn-01"} {
		n := w.file.Nodes[i]
		before := w.serves(n, n.Host)
		w.must("cert", "renew", "--dir", n.Dir)
		if after := w.serves(n, n.Host, before); spki(after) != spki(before) {
			t.Errorf("%s: a renewal changed the key", n.Name)
		}
		if c := w.certificates(n); c.Challenge != challenge || c.Account == "" {
			t.Errorf("cert list: %+v", c)
		}
	}
	check(w, w.file.Nodes[0].Host, "challenge: http-01: not looked at")
	if asked, refused := w.pebble.said(t, "Attempting to validate w/ HTTP: http://"+w.file.Nodes[0].Host+":5002/"), w.pebble.said(t, "set INVALID"); asked == 0 || refused != 0 {
		t.Errorf("Pebble came %d times by HTTP, and refused %d challenges", asked, refused)
	}
}
