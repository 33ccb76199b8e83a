package mtasts

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestPolicy(t *testing.T) {
	t.Parallel()
	p := Policy{Mode: "testing", MaxAge: 604800, MX: []string{"msgw1.msgw.example.com", "old.example.com"}}
	want := "version: STSv1\r\nmode: testing\r\nmx: msgw1.msgw.example.com\r\nmx: old.example.com\r\nmax_age: 604800\r\n"
	if p.Text() != want {
		t.Errorf("%q", p.Text())
	}
	if !regexp.MustCompile(`^[a-zA-Z0-9]{1,32}$`).MatchString(p.ID()) { // RFC 8461 section 3.1
		t.Errorf("id %q", p.ID())
	}
	id := p.ID()
	if p.Mode = "enforce"; p.ID() == id {
		t.Error("another policy has the same id")
	}
}

func serve(t *testing.T) (addr string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"mta-sts.example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
			func(host string) (string, bool) { return "the policy", host == "mta-sts.example.com" }, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// ask sends one request as it is and returns the answer.
func ask(addr, request string) (*http.Response, string, error) {
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		return nil, "", err
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(res.Body)
	return res, string(b), err
}

func TestServe(t *testing.T) {
	t.Parallel()
	addr := serve(t)
	for _, tc := range []struct {
		request string
		status  int
		body    string
	}{
		{"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.com\r\n\r\n", 200, "the policy"},
		{"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: MTA-STS.example.com:443\r\n\r\n", 200, "the policy"},
		{"HEAD /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.com\r\n\r\n", 200, ""},
		{"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: example.com\r\n\r\n", 404, handlerMessage + "\n"},
		{"GET / HTTP/1.1\r\nHost: mta-sts.example.com\r\n\r\n", 404, handlerMessage + "\n"},
		{"POST /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.com\r\nContent-Length: 0\r\n\r\n", 405, "GET or HEAD\n"},
		{"GET / HTTP/1.1\r\nHost: mta-sts.example.com\r\nX: " + strings.Repeat("x", 3*maxHeader) + "\r\n\r\n", 431, "431 Request Header Fields Too Large"},
	} {
		res, body, err := ask(addr, tc.request)
		if err != nil {
			t.Errorf("%.60q: %v", tc.request, err)
			continue
		}
		if res.StatusCode != tc.status || body != tc.body || !res.Close {
			t.Errorf("%.60q: %s, %q, closed %v", tc.request, res.Status, body, res.Close)
		}
		if tc.status == 200 && res.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%v", res.Header)
		}
	}
}

// One client gets its connections and no more; they come back.
func TestConnections(t *testing.T) {
	t.Parallel()
	addr := serve(t)
	var conns []net.Conn
	for i := range maxConnsOfOne {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		c.Close()
		t.Error("one connection too many was served")
	}
	conns[0].Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		res, _, err := ask(addr, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if err == nil && res.StatusCode == 404 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("a connection that ended is not given back: %w", err))
		}
		time.Sleep(10 * time.Millisecond)
	}
}
