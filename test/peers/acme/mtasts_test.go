//go:build peers

package acme

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab"
	"msgw/test/labtest"
)

// peerPort is where the sites of a lab talk to each other.
const peerPort = "8451"

// TestMTASTSName has both sites prove mta-sts.<zone>, whichever of them the resolver asks:
// with everything up, without the line between them, and with one of them down.
func TestMTASTSName(t *testing.T) {
	w := newWorld(t, setting{edit: func(n lab.NodeRow, text string) string {
		return strings.Replace(text, "[listen]\n", "[listen]\nhttps = \""+n.Addr+":443\"\n", 1)
	}})
	n, other := w.file.Nodes[0], w.file.Nodes[1]
	name := "mta-sts." + w.file.Zone
	w.must("dns", "set", "--mta-sts", "testing", "--dir", n.Dir)
	first := map[string]*x509.Certificate{}
	for _, site := range w.file.Nodes {
		w.serves(site, site.Host)
		first[site.Name] = w.serves(site, name)
		if text, err := w.policy(site, name); err != nil || !strings.Contains(text, "mode: testing") {
			t.Errorf("policy at %s: %q, %v", site.Name, text, err)
		}
	}
	if spki(first[n.Name]) == spki(first[other.Name]) {
		t.Error("both sites have the same key")
	}
	labtest.Within(t, time.Minute, "enforce is let", func() error {
		out, err := w.Msgw("dns", "set", "--mta-sts", "enforce", "--dir", n.Dir)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	// Each time the resolver asks one of the two.
	for range 3 {
		for _, site := range w.file.Nodes {
			w.must("cert", "renew", name, "--dir", site.Dir)
		}
	}
	if refused := w.pebble.said(t, "set INVALID"); refused != 0 {
		t.Errorf("Pebble refused %d challenges", refused)
	}
	check(w, name)

	// renew orders a name; it says how long that took.
	renew := func(when, of string) {
		t.Helper()
		before, err := w.shown(of, n.POP3S)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		w.must("cert", "renew", of, "--dir", n.Dir)
		w.serves(n, of, before)
		t.Logf("%s: %s after %v", when, of, time.Since(begun).Round(time.Second/10))
	}
	restore := cut(t)
	labtest.Within(t, time.Minute, "the sites lose each other", func() error {
		out, _ := w.Msgw("status", "--json", "--dir", n.Dir) // it fails for what is out of order
		var s admin.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil || s.Quorum {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	begun := time.Now()
	out, err := w.Msgw("cert", "renew", name, "--dir", n.Dir)
	if err == nil || !strings.Contains(out, "msgw: no certificate: "+name+": the order waits: msgw2 cannot be told of it, but its DNS answers, and the CA might ask it") {
		t.Errorf("with the line cut: %v\n%s", err, out)
	}
	t.Logf("with the line cut, after %v: %s", time.Since(begun).Round(time.Second/10), out)
	if c := w.ordered(n, name); !strings.Contains(c.Error, "the order waits: msgw2") || !c.Served {
		t.Errorf("cert list: %+v", c)
	}
	renew("with the line cut", n.Host)
	w.lab("kill", other.Name)
	renew("with the line cut and the other site down", name)
	restore()
	renew("with the other site down", name)
	renew("with the other site down", n.Host)
	w.lab("start", other.Name)
	labtest.Within(t, time.Minute, "the other site proves the name again", func() error {
		out, err := w.Msgw("cert", "renew", name, "--dir", other.Dir)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	w.serves(other, name, first[other.Name])
	if refused := w.pebble.said(t, "set INVALID"); refused != 0 {
		t.Errorf("Pebble refused %d challenges", refused)
	}
}

// policy fetches the MTA-STS policy from a site as senders do (RFC 8461 section 3.3).
func (w *world) policy(n lab.NodeRow, name string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return connect(ctx, name, n.Addr+":443", w.issued)
		}}}
	res, err := client.Get("https://" + name + "/.well-known/mta-sts.txt")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", res.Status)
	}
	return string(b), err
}

// cut drops what the sites say to each other, until restore is called; all else goes on.
func cut(t *testing.T) (restore func()) {
	t.Helper()
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader("table ip acme {\n chain input {\n type filter hook input priority 0;\n tcp dport " + peerPort + " drop\n tcp sport " + peerPort + " drop\n }\n}\n")
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	cut := true
	restore = func() {
		if !cut {
			return
		}
		cut = false
		if out, err := exec.Command("nft", "delete", "table", "ip", "acme").CombinedOutput(); err != nil {
			t.Errorf("nft: %v\n%s", err, out)
		}
	}
	t.Cleanup(restore)
	return restore
}
