//go:build peers

package acme

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"msgw/test/labtest"
	"msgw/test/peers"
)

const (
	directory  = "https://127.0.0.1:14000/dir"
	management = "https://127.0.0.1:15000"
)

// pebble is a running Pebble.
type pebble struct {
	*peers.Process
	root   string // PEM file its own HTTPS certificate is checked against
	issuer string // PEM file of the root that it issues from
}

// startPebble runs Pebble as strictly as it can, and as unreliable as it is by
// default: it refuses one nonce in twenty. Every order is to be proven anew. It looks names up with the suite's
// resolver, as it follows no referral itself.
func startPebble(t *testing.T) pebble {
	t.Helper()
	dir := t.TempDir()
	p := pebble{root: filepath.Join(dir, "https.pem"), issuer: filepath.Join(dir, "issuer.pem")}
	key := filepath.Join(dir, "https.key")
	selfSigned(t, p.root, key)
	conf, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000", "certificate": p.root, "privateKey": key,
		"httpPort": 5002, "tlsPort": 5001, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "90 days", "validityPeriod": 90 * 24 * 3600}}}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "pebble.json"), conf, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(peers.Program("pebble"), "-strict", "-config", filepath.Join(dir, "pebble.json"), "-dnsserver", peers.ResolverAddr+":53")
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0")
	p.Process = peers.Start(t, "pebble", cmd)
	labtest.Within(t, 30*time.Second, "pebble shows its root", func() error {
		if p.Ended() {
			t.Fatal("pebble has ended")
		}
		b, err := p.get(t.Context(), management+"/roots/0")
		if err != nil {
			return err
		}
		return os.WriteFile(p.issuer, b, 0o600)
	})
	return p
}

func (p pebble) get(ctx context.Context, url string) ([]byte, error) {
	return p.do(ctx, http.MethodGet, url, nil)
}

// renewNow has Pebble say from now on that a certificate is to be renewed at once (RFC
// 9773 section 4.1).
func (p pebble) renewNow(ctx context.Context, cert *x509.Certificate) error {
	now := time.Now().UTC()
	info, err := json.Marshal(map[string]any{"suggestedWindow": map[string]time.Time{"start": now.Add(-time.Hour), "end": now.Add(-time.Minute)}})
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), "ARIResponse": string(info)})
	if err != nil {
		return err
	}
	_, err = p.do(ctx, http.MethodPost, management+"/set-renewal-info/", body)
	return err
}

func (p pebble) do(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool(p.root)}, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, res.Status)
	}
	return io.ReadAll(res.Body)
}

// said returns how often Pebble has logged a text.
func (p pebble) said(t *testing.T, text string) int {
	t.Helper()
	b, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), text)
}

// pool reads a PEM bundle; an unreadable one trusts nothing.
func pool(path string) *x509.CertPool {
	p := x509.NewCertPool()
	if b, err := os.ReadFile(path); err == nil {
		p.AppendCertsFromPEM(b)
	}
	return p
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pebble"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err == nil {
		err = os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	}
	if err == nil {
		err = os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
