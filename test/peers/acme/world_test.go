//go:build peers

package acme

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab"
	"msgw/test/labtest"
	"msgw/test/peers"
)

// world is a lab whose sites have certificates from Pebble, below a tree that delegates
// its zone.
type world struct {
	*labtest.Lab
	t      *testing.T
	file   lab.File
	pebble pebble
	issued *x509.CertPool // what Pebble's certificates are checked against
}

// setting is what differs from world to world.
type setting struct {
	signed string                           // how `msgw dns sign on` is called; empty: not signed
	edit   func(lab.NodeRow, string) string // of a site's configuration file
	lines  func(lab.File) string            // that the parent zone has
}

func newWorld(t *testing.T, s setting) *world {
	t.Helper()
	base.Versions(t)
	t.Logf("judged by %s", pebbleModule)
	w := &world{Lab: peers.Lab(t), t: t}
	w.file = w.File()
	lines := peers.Delegation
	if s.lines != nil {
		lines = s.lines
	}
	for _, n := range w.file.Nodes {
		if s.edit != nil {
			w.configure(n, s.edit)
		}
	}
	if s.signed == "" {
		peers.ServeDelegation(t, base, lines(w.file))
		peers.Unbound(t, base, 0)
	} else {
		var signing admin.Signing
		out := w.must("dns", "sign", "on", "--max-ttl", s.signed, "--json", "--dir", w.file.Nodes[0].Dir)
		if err := json.Unmarshal([]byte(out), &signing); err != nil {
			t.Fatal(err)
		}
		tree := peers.ServeSignedTree(t, base, lines(w.file), signing.Keys[0].DS)
		peers.ValidatingUnbound(t, base, tree.Anchor)
	}
	w.pebble = startPebble(t)
	w.issued = pool(w.pebble.issuer)
	// `msgw cert check` trusts the roots that it is told, too.
	roots := filepath.Join(t.TempDir(), "roots.pem")
	a, err := os.ReadFile(w.pebble.root)
	if err == nil {
		var b []byte
		if b, err = os.ReadFile(w.pebble.issuer); err == nil {
			err = os.WriteFile(roots, slices.Concat(a, b), 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	w.must("acme", directory, "--root", roots, "--dir", w.file.Nodes[0].Dir)
	return w
}

// must runs msgw and returns what it printed, with a test's failure if that failed.
func (w *world) must(args ...string) string {
	w.t.Helper()
	out, err := w.Msgw(args...)
	if err != nil {
		w.t.Fatalf("msgw %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// lab stops or starts a site.
func (w *world) lab(verb, name string) {
	w.t.Helper()
	w.must("lab", verb, name, "--dir", w.Dir)
}

// configure changes a site's configuration file, and restarts it.
func (w *world) configure(n lab.NodeRow, edit func(lab.NodeRow, string) string) {
	w.t.Helper()
	path := filepath.Join(w.Dir, n.Name+".toml")
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	text := edit(n, string(b))
	if text == string(b) {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.lab("stop", n.Name)
	w.lab("start", n.Name)
	labtest.Within(w.t, 30*time.Second, n.Name+" answers again", func() error {
		out, err := w.Msgw("status", "--dir", n.Dir, "--json")
		var s admin.Status
		if err == nil {
			err = json.Unmarshal([]byte(out), &s)
		}
		if err == nil && (!s.Quorum || !s.Accepting) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
}

// shown returns the certificate that a port of a site shows to who asks for host, which
// Pebble must have issued.
func (w *world) shown(host, addr string, dialogue ...string) (*x509.Certificate, error) {
	conn, err := connect(w.t.Context(), host, addr, w.issued, dialogue...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// serves waits until a site shows a certificate for host that Pebble issued, and not an
// earlier one.
func (w *world) serves(n lab.NodeRow, host string, not ...*x509.Certificate) *x509.Certificate {
	w.t.Helper()
	var cert *x509.Certificate
	labtest.Within(w.t, time.Minute, n.Name+" serves a certificate of Pebble's for "+host, func() (err error) {
		cert, err = w.shown(host, n.POP3S)
		if err == nil && slices.ContainsFunc(not, cert.Equal) {
			err = fmt.Errorf("serial %s still", serial(cert))
		}
		return err
	})
	return cert
}

// certificates returns what `msgw cert list` says of a site.
func (w *world) certificates(n lab.NodeRow) admin.Certificates {
	w.t.Helper()
	var sites []admin.Certificates
	if err := json.Unmarshal([]byte(w.must("cert", "list", "--json", "--dir", n.Dir)), &sites); err != nil || len(sites) != 1 {
		w.t.Fatalf("cert list: %v, %v", sites, err)
	}
	return sites[0]
}

// ordered returns what `msgw cert list` says of the certificate that is ordered for a name.
func (w *world) ordered(n lab.NodeRow, name string) admin.Cert {
	w.t.Helper()
	all := w.certificates(n)
	i := slices.IndexFunc(all.Certs, func(c admin.Cert) bool { return c.Source == "ACME" && slices.Contains(c.Names, name) })
	if i < 0 {
		w.t.Fatalf("%s lists none for %s: %+v", n.Name, name, all)
	}
	return all.Certs[i]
}

func serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// spki is the SHA-256 of a certificate's key, in hex.
func spki(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
