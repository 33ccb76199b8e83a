package smtpnode

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"msgw/internal/journal"
)

// restricted starts a server whose mailbox mbx-1 is restricted; mbx-2 is not.
func restricted(t *testing.T, restrict Restrictions, offer Offer) (*rig, *atomic.Value) {
	heard := &atomic.Value{}
	return start(t, func(o *Options) {
		o.Mailboxes = fakeMailboxes{offer: offer, heard: heard, restrict: map[string]Restrictions{"mbx-1": restrict}}
	}), heard
}

const greeting = "S: 220\nC: EHLO x\nS: 250-\nC: MAIL FROM:<>\nS: 250\n"

// What restrictions refuse is refused for now, at RCPT, and for that mailbox only.
func TestRestrictions(t *testing.T) {
	t.Parallel()
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	others := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	for name, tc := range map[string]struct {
		Restrictions
		answer, cause string
	}{
		"allowed":        {Restrictions{Allow: append(slices.Clone(others), loopback...)}, "250", ""},
		"not allowed":    {Restrictions{Allow: others}, "450 4.7.1 this mailbox takes no mail from 127.0.0.1", "127.0.0.1 is not in the allow list"},
		"TLS":            {Restrictions{RequireTLS: true}, "450 4.7.0 this mailbox takes mail over TLS only", "sent without TLS"},
		"a certificate":  {Restrictions{ClientNames: []string{"mx.example.net"}}, "450 4.7.0", "no client certificate"},
		"the first of 2": {Restrictions{MaxRecipients: 1}, "250", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, heard := restricted(t, tc.Restrictions, Offer{})
			c := r.dial()
			c.dialog(greeting + "C: RCPT TO:<mbx-1@z>\nS: " + tc.answer + "\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250")
			got, _ := heard.Load().(string)
			if want := tc.cause; (want == "") != (got == "") || want != "" && got != "mbx-1 127.0.0.1 restricted: "+want {
				t.Errorf("heard %q, want %q", got, want)
			}
			if n := len(r.store.List("mbx-1")); (n == 1) != (tc.cause == "") {
				t.Errorf("%d messages", n)
			}
		})
	}
}

// A refusal for now does not use up the errors that a connection may make: what one
// mailbox refuses must not keep a message from the others.
func TestRestrictionsAreNoErrors(t *testing.T) {
	t.Parallel()
	r, _ := restricted(t, Restrictions{RequireTLS: true}, Offer{})
	c := r.dial()
	c.dialog(greeting + strings.Repeat("C: RCPT TO:<mbx-1@z>\nS: 450 4.7.0\n", 50) + "C: RCPT TO:<mbx-2@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250")
}

// Three errors are answered; then the connection ends.
func TestErrors(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.MaxErrors = 0 }) // the default
	c := r.dial()
	c.dialog(greeting + "C: RCPT TO:<nobody@z>\nS: 550 5.1.1\nC: NONSENSE\nS: 500\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: RCPT TO:<a b@z>\nS: 501\nS: 421 4.7.0")
	c.closed()
	c = r.dial() // and begin anew with a message that is taken
	c.dialog(greeting + "C: NONSENSE\nS: 500\nC: NONSENSE\nS: 500\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250\nC: NONSENSE\nS: 500\nC: NONSENSE\nS: 500\nC: NOOP\nS: 250")
}

func TestRestrictedSize(t *testing.T) {
	t.Parallel()
	r, _ := restricted(t, Restrictions{MaxSize: 100}, Offer{})
	c := r.dial()
	long, fits := strings.Repeat("x", 99), strings.Repeat("x", 98)
	c.dialog("S: 220\nC: EHLO x\nS: 250-\n" +
		"C: MAIL FROM:<> SIZE=101\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 552 5.3.4\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: DATA\nS: 354\nC: " + long + "\nC: .\nS: 250\n" +
		"C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 452 4.5.3\nC: DATA\nS: 354\nC: " + long + "\nC: .\nS: 250\n" +
		"C: MAIL FROM:<> SIZE=99\nS: 250\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: " + long + "\nC: .\nS: 552 5.3.4\n" +
		"C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: BDAT 101 LAST\nC: " + long + "\nS: 552 5.3.4\n" +
		"C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: " + fits + "\nC: .\nS: 250")
	if one, two := len(r.store.List("mbx-1")), len(r.store.List("mbx-2")); one != 1 || two != 2 {
		t.Errorf("%d and %d messages", one, two)
	}
}

func TestRestrictedRecipients(t *testing.T) {
	t.Parallel()
	r, _ := restricted(t, Restrictions{MaxRecipients: 2}, Offer{MaxRecipients: 4, MaxSize: 70_000})
	c := r.dial()
	c.expect("220")
	c.send("EHLO x\r\n")
	if got := c.expect("250"); !strings.Contains(got, "LIMITS RCPTMAX=4\r\n") || !strings.Contains(got, "SIZE 70000\r\n") {
		t.Errorf("offered %q", got)
	}
	c.dialog("C: MAIL FROM:<> SIZE=70001\nS: 552\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1+a=b.example@z>\nS: 250\nC: RCPT TO:<mbx-1+c=d.example@z>\nS: 250\n" +
		"C: RCPT TO:<mbx-1@z>\nS: 452 4.5.3 too many addresses of this mailbox\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: RCPT TO:<mbx-2@z>\nS: 452 4.5.3 too many recipients")
}

// Sequences that other servers may take for the end of the message are content here, kept,
// and flagged; a mailbox can have them refused, once the message has come to its end.
func TestAmbiguousDots(t *testing.T) {
	t.Parallel()
	r, _ := restricted(t, Restrictions{RejectDots: true}, Offer{})
	for wire, ambiguous := range map[string]bool{
		"a\r\n..\r\nb\r\n":    false,
		"a.\r\n":              false,
		"a\r\n.b\r\n":         false,
		"a\n.b\r\n":           false,
		"a\rb\n":              false,
		"..\n\r\n":            false,
		"a\n.\nb\r\n":         true,
		"a\n.\r\nb\r\n":       true,
		"a\r\n.\nb\r\n":       true,
		"a\r.\rb\r\n":         true,
		"a\r.\r\nb\r\n":       true,
		"a\r\n.\rb\r\n":       true,
		"a\n.\rb\r\n":         true,
		"a\r.\nb\r\n":         true,
		"a\r\n\r\n\r.\r\r\n":  true,
		".\nMAIL FROM:<>\r\n": true,
		".\rMAIL FROM:<>\r\n": true,
		"a\r\n.\n.\n.\n.\r\n": true,
	} {
		c := r.dial()
		before := len(r.store.List("mbx-1"))
		want := map[bool]string{true: "550 5.6.0", false: "250"}[ambiguous]
		if !strings.HasSuffix(wire, "\r\n") {
			wire += "\r\n"
		}
		c.dialog(greeting + "C: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354")
		c.send(wire + ".\r\n")
		c.expect(want)
		if n := len(r.store.List("mbx-1")) - before; (n == 1) == ambiguous {
			t.Errorf("%q: %d stored", wire, n)
		}
		c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: DATA\nS: 354")
		c.send(wire + ".\r\n")
		c.expect("250")
		all := r.store.List("mbx-2")
		if got := all[len(all)-1].Flags&journal.AmbiguousDot != 0; got != ambiguous {
			t.Errorf("%q: flagged %v", wire, got)
		}
		c.Close()
	}
	// In chunks nothing is ambiguous.
	c := r.dial()
	c.dialog(greeting + "C: RCPT TO:<mbx-1@z>\nS: 250")
	c.send("BDAT 8 LAST\r\na\r\n.\nb\r\n")
	c.expect("250")
}

func TestReceivedLoop(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	field := "Received: from a by b\r\n"
	c := r.dial()
	c.dialog(envelope + "C: DATA\nS: 354")
	c.send(strings.Repeat(field, 101) + "\r\nhello\r\n.\r\n")
	c.expect("554 5.4.6")
	c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354")
	c.send(strings.Repeat(field, 100) + "\r\n" + field + "\r\n.\r\n")
	c.expect("250")
	c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354")
	c.send(strings.Repeat(field, 101) + ".\r\n") // nothing but a header
	c.expect("554 5.4.6")
}

func TestOriginal(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"mbx-1@z":                       "mbx-1@z",
		"mbx-1+user=example.com@z":      "user@example.com",
		"mbx-1+a+b=c=example.com@z":     "a+b=c@example.com",
		"MBX-1+User=Example.COM@z":      "User@Example.COM",
		"mbx-1+tag@z":                   "mbx-1+tag@z",
		"mbx-1+=example.com@z":          "mbx-1+=example.com@z",
		"mbx-1+user=@z":                 "mbx-1+user=@z",
		`"mbx-1+a..b=example.com"@z`:    "a..b@example.com",
		`"mbx-1+a \"b\\=example.com"@z`: `"a \"b\\"@example.com`,
		`"mbx-1+a b=exa mple.com"@z`:    `"mbx-1+a b=exa mple.com"@z`,
		`"mbx-1"@z`:                     `"mbx-1"@z`,
		"mbx-1+bücher=example.com@z":    "bücher@example.com",
		"mbx-1":                         "mbx-1",
		"mbx-1+user=[192.0.2.1]@z":      "user@[192.0.2.1]",
		`mbx-1+"x=example.com@z`:        `mbx-1+"x=example.com@z`,
		"mbx-1+user=example.com=x.y@z ": "user=example.com@x.y",
	} {
		if got := Original(address); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

// The trace block names the original recipients, and where the message came from.
func TestTraceFields(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial()
	c.dialog("S: 220\nC: EHLO relay.example\nS: 250-\nC: MAIL FROM:<ann@example.net> SMTPUTF8\nS: 250\nC: RCPT TO:<mbx-1+bob=example.com@z>\nS: 250\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: RCPT TO:<mbx-2+eve=example.com@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250")
	one, _ := r.plaintext("mbx-1", 0)
	two, _ := r.plaintext("mbx-2", 0)
	for _, want := range []string{"\r\nReturn-Path: <ann@example.net>\r\n", "\r\nX-Envelope-From: <ann@example.net>\r\n", "\r\nX-Envelope-To: <bob@example.com>\r\n\r\n",
		"\r\nReceived: from relay.example ([127.0.0.1])\r\n\tby mx.example.org with UTF8SMTP id ", "\r\n\tfor <mbx-1+bob=example.com@z>;\r\n\t"} {
		if !strings.Contains(one[0], want) {
			t.Errorf("%q lacks %q", one[0], want)
		}
	}
	if !strings.HasSuffix(two[0], "\r\nX-Envelope-To: <mbx-2@z>\r\nX-Envelope-To: <eve@example.com>\r\n\r\n") || strings.Contains(two[0], "bob") || strings.Contains(two[0], "\tfor") {
		t.Errorf("trace of mbx-2: %q", two[0])
	}
	c.dialog("C: EHLO a(\\b\xff\u0085\";<ä@c-1_.example\nS: 250-\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250")
	if one, _ = r.plaintext("mbx-1", 1); !strings.Contains(one[0], "\r\nReceived: from a??b???????c-1_.example ([127.0.0.1])\r\n") {
		t.Errorf("a name of any octets: %q", one[0])
	}
	if got := literal(netip.MustParseAddr("2001:db8::1")); got != "[IPv6:2001:db8::1]" {
		t.Error(got)
	}
}

func TestPresets(t *testing.T) {
	t.Parallel()
	if _, err := time.Parse("2006-01", PresetsAsOf); err != nil {
		t.Error(err)
	}
	for _, name := range Presets() {
		list, ok := Preset(name)
		if !ok || len(list) < 2 {
			t.Errorf("%s: %v", name, list)
		}
		for i, p := range list {
			if p != p.Masked() {
				t.Errorf("%s: %s is %s", name, p, p.Masked())
			}
			if slices.ContainsFunc(list[:i], p.Overlaps) {
				t.Errorf("%s: %s overlaps another", name, p)
			}
		}
	}
	for a, want := range map[string]bool{"40.107.22.83": true, "::ffff:40.92.75.68": true, "209.85.167.41": true, "2a01:111:f403:c100::1": true,
		"2607:f8b0:4864:20::1": true, "192.0.2.1": false, "2001:db8::1": false} {
		if got := FromPreset(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	for s, want := range map[string]string{"192.0.2.1": "[192.0.2.1/32]", "::ffff:192.0.2.1": "[192.0.2.1/32]", "192.0.2.0/24": "[192.0.2.0/24]", "2001:db8::/32": "[2001:db8::/32]",
		"192.0.2.1/24": "the network is 192.0.2.0/24", "example.com": "expected", "": "expected", "::ffff:192.0.2.0/120": "expected", "fe80::1%eth0": "expected"} {
		p, err := ParseAllow(s)
		if got := fmt.Sprint(p); err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %s", s, p, err, want)
		}
	}
}

// clientCert makes a certificate for a host, by a CA if there is one.
func clientCert(t *testing.T, host string, ca *tls.Certificate) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	parent, signer := tmpl, any(k)
	if ca == nil {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage, tmpl.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	} else {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &k.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, Leaf: leaf}
}

func TestClientCertificate(t *testing.T) {
	t.Parallel()
	ca, stranger := clientCert(t, "ca", nil), clientCert(t, "other ca", nil)
	good, other, forged := clientCert(t, "mail.example.net", &ca), clientCert(t, "mail.example.org", &ca), clientCert(t, "mail.example.net", &stranger)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	r, heard := restricted(t, Restrictions{ClientNames: []string{"mail.example.net"}, ClientCAs: pool}, Offer{ClientCertificate: true})
	for name, tc := range map[string]struct {
		cert         *tls.Certificate
		answer, says string
	}{
		"none":      {nil, "450 4.7.0", "no client certificate"},
		"right":     {&good, "250", ""},
		"of others": {&other, "450 4.7.0", "client certificate is for mail.example.org"},
		"forged":    {&forged, "450 4.7.0", "signed by unknown authority"},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			c := r.dial()
			c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: STARTTLS\nS: 220")
			cfg := &tls.Config{InsecureSkipVerify: true, MaxVersion: version}
			if tc.cert != nil {
				cfg.Certificates = []tls.Certificate{*tc.cert}
			}
			over := tls.Client(c.Conn, cfg)
			c = &client{t, over, bufio.NewReader(over)}
			heard.Store("")
			c.dialog("C: EHLO x\nS: 250-\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-2@z>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: " + tc.answer)
			if got := heard.Load().(string); (got == "") != (tc.says == "") || !strings.Contains(got, tc.says) {
				t.Errorf("%s, %s: heard %q", name, tls.VersionName(version), got)
			}
		}
	}
}
