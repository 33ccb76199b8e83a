package ca

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func authority(t *testing.T) (*Authority, *x509.Certificate) {
	t.Helper()
	p, key, err := New("c1", now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(p, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCertificate(p)
	if err != nil {
		t.Fatal(err)
	}
	return a, c
}

func TestPeerCertificate(t *testing.T) {
	t.Parallel()
	a, root := authority(t)
	b, _ := authority(t)
	k, _ := NewKey()
	id := Identity{"c1", "msgw1", "0123abcd"}
	issue := func(a *Authority) *x509.Certificate {
		p, err := a.IssuePeer(id, k.Public(), now)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ParseCertificate(p)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	got, err := VerifyPeer(root, []*x509.Certificate{issue(a)}, now)
	if err != nil || got != id {
		t.Errorf("%+v, %v", got, err)
	}
	p, err := a.IssueHost([]string{"msgw1.msgw.example.com"}, k.Public(), now)
	if err != nil {
		t.Fatal(err)
	}
	host, _ := ParseCertificate(p)
	if err := host.VerifyHostname("msgw1.msgw.example.com"); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		c  *x509.Certificate
		at time.Time
	}{
		"another authority":  {issue(b), now},
		"a host certificate": {host, now},
		"expired":            {issue(a), now.Add(Life + time.Hour)},
		"far in the future":  {issue(a), now.Add(-skew - time.Hour)},
		"the authority":      {root, now},
	} {
		if id, err := VerifyPeer(root, []*x509.Certificate{tc.c}, tc.at); err == nil {
			t.Errorf("%s: taken as %+v", name, id)
		}
	}
	if _, err := VerifyPeer(root, nil, now); err == nil {
		t.Error("no certificate at all was taken")
	}
	if _, err := ParseCertificate("no PEM"); err == nil || !strings.Contains(err.Error(), "PEM") {
		t.Error(err)
	}
}
