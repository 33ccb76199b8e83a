//go:build peers

package tls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/lab/report"
)

// openssl is s_client(1) as people use it who look for a fault: with a script on its
// standard input.
func openssl(t *testing.T, s *scene) {
	for _, part := range []struct {
		name string
		run  func(t *testing.T, s *scene)
	}{
		{"a message goes in and comes out", mail},
		{"certificates", certificates},
		{"old protocols", oldProtocols},
		{"session tickets", tickets},
		{"plaintext behind STARTTLS", injected},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, s) })
	}
}

// client runs s_client on a door, verifying chain and name, until the server ends it.
func (s *scene) client(t *testing.T, d door, input string, args ...string) (out string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	args = append([]string{"s_client", "-connect", d.addr, "-CAfile", labCA, "-verify_return_error"}, args...)
	if d.starttls != "" {
		args = append(args, "-starttls", d.starttls)
	}
	cmd := root.Command(ctx, "/usr/bin/openssl", args...)
	// With -quiet it goes on at the end of its input, until the server closes.
	cmd.Stdin = strings.NewReader(input)
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// mail: a whole session on standard input sends a message to each site, and others fetch
// it. -crlf makes the lines end as they should, and -quiet keeps R and Q from being
// commands of s_client.
func mail(t *testing.T, s *scene) {
	for i, n := range s.file.Nodes {
		b := s.file.Mailboxes[i]
		message := report.New(1, i, 4096) // a report: nothing stands before it at its hand-over
		// A script hands in all at once, the body before the 354 too.
		wire := bytes.ReplaceAll(append([]byte("\r\n"), message...), []byte("\r\n."), []byte("\r\n.."))[2:]
		session := "EHLO scripted.example.net\nMAIL FROM:<script@example.net>\nRCPT TO:<" + b.Address + ">\nDATA\n" +
			strings.ReplaceAll(string(wire), "\r\n", "\n") + ".\nQUIT\n"
		d := doors(n)[0]
		out, err := s.client(t, d, session, "-servername", n.Host, "-verify_hostname", n.Host, "-crlf", "-quiet")
		if err != nil || strings.Count(out, "250 2.0.0 stored ") != 1 || !strings.Contains(out, "221 2.0.0 bye") {
			t.Errorf("%s: %v\n%s", n.Name, err, out)
		}
		for _, d := range doors(n)[1:] {
			out, err := s.client(t, d, "USER "+b.ID+"\nPASS "+b.Password+"\nUIDL\nRETR 1\nQUIT\n", "-servername", n.Host, "-verify_hostname", n.Host, "-crlf", "-quiet")
			if err != nil || !strings.Contains(out, "+OK message follows\r\n"+string(wire)+".\r\n+OK") {
				t.Errorf("%s, %s: %v\n%s", n.Name, d.name, err, out)
			}
		}
		if got := s.fetch(t, n, b); len(got) != 1 || !bytes.Equal(got[0], message) {
			t.Errorf("%s has %d messages, or another one", n.Name, len(got))
		}
	}
}

// certificates: every door shows its site's certificate, to who asks for its name, for
// the other site's, for no name, and for one of no site; and OpenSSL verifies it.
func certificates(t *testing.T, s *scene) {
	for i, n := range s.file.Nodes {
		other := s.file.Nodes[1-i].Host
		for _, d := range doors(n) {
			for _, asked := range [][]string{{"-servername", n.Host}, {"-servername", other}, {"-servername", "mail.example.org"}, {"-noservername"}} {
				out, err := s.client(t, d, "QUIT\r\n", append(asked, "-verify_hostname", n.Host, "-brief")...)
				if err != nil || !strings.Contains(out, "Verification: OK") || !strings.Contains(out, "Verified peername: "+n.Host) {
					t.Errorf("%s, %s, %q: %v\n%s", n.Name, d.name, asked, err, out)
				}
			}
			// The judge can fail: this is not the other site.
			if out, err := s.client(t, d, "QUIT\r\n", "-servername", other, "-verify_hostname", other, "-brief"); err == nil || !strings.Contains(out, "hostname mismatch") {
				t.Errorf("%s, %s: it passes for %s: %v\n%s", n.Name, d.name, other, err, out)
			}
		}
	}
}

// oldProtocols: what is older than TLS 1.2 is refused by the door, and by name.
func oldProtocols(t *testing.T, s *scene) {
	for _, d := range doors(s.file.Nodes[0]) {
		for _, version := range []string{"-tls1", "-tls1_1"} {
			out, err := s.client(t, d, "QUIT\r\n", version, "-cipher", "ALL:@SECLEVEL=0")
			if err == nil || !strings.Contains(out, "alert protocol version") {
				t.Errorf("%s, %s: %v\n%s", d.name, version, err, out)
			}
		}
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			if out, err := s.client(t, d, "QUIT\r\n", version); err != nil {
				t.Errorf("%s, %s: %v\n%s", d.name, version, err, out)
			}
		}
	}
}

// tickets: the SMTP door issues none, and nothing else that a session could be resumed
// by, for senders that stall on that (https://github.com/golang/go/issues/70232). The
// POP3 doors do, by which it is known that it would have been seen.
func tickets(t *testing.T, s *scene) {
	for _, d := range doors(s.file.Nodes[0]) {
		smtp, session := d.name == "SMTP", filepath.Join(t.TempDir(), "session")
		for _, x := range []struct {
			args         []string
			issued, says string
		}{
			{[]string{"-tls1_2", "-sess_out", session}, "TLS session ticket:", "New, TLSv1.2"},
			// The tickets of TLS 1.3 come behind the handshake.
			{[]string{"-tls1_3", "-ign_eof"}, "Post-Handshake New Session Ticket", "New, TLSv1.3"},
		} {
			out, err := s.client(t, d, "QUIT\r\n", x.args...)
			if err != nil || !strings.Contains(out, x.says) || strings.Contains(out, x.issued) == smtp {
				t.Errorf("%s, %q: %v\n%s", d.name, x.args, err, out)
			}
		}
		if smtp {
			if _, err := os.Stat(session); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("OpenSSL has a session to resume: %v", err)
			}
		} else if out, err := s.client(t, d, "QUIT\r\n", "-tls1_2", "-sess_in", session); err != nil || !strings.Contains(out, "Reused, TLSv1.2") {
			t.Errorf("%s resumes no session: %v\n%s", d.name, err, out)
		}
	}
}

// injected: somebody on the way puts commands behind STARTTLS or STLS, with it or after
// it. They are never answered, and nothing that the client says is mixed with them: the
// handshake fails (RFC 3207 section 6, CVE-2011-0411).
func injected(t *testing.T, s *scene) {
	n, b := s.file.Nodes[0], s.file.Mailboxes[4]
	session := "EHLO scripted.example.net\nMAIL FROM:<script@example.net>\nRCPT TO:<" + b.Address + ">\nDATA\nSubject: x\n\nx\n.\nQUIT\n"
	for _, d := range doors(n)[:2] {
		verb, commands := "STARTTLS\r\n", "EHLO injected\r\nMAIL FROM:<injected@example.net>\r\nRCPT TO:<"+b.Address+">\r\nDATA\r\nSubject: injected\r\n\r\n.\r\n"
		if d.starttls == "pop3" {
			verb, commands = "STLS\r\n", "CAPA\r\nUSER "+b.ID+"\r\nPASS x\r\n"
		}
		for _, late := range []bool{false, true} {
			name := fmt.Sprintf("%s, late %v", d.name, late)
			m := newMiddle(t, d, verb, commands, late)
			out, err := s.client(t, door{addr: m.addr, starttls: d.starttls}, session, "-servername", n.Host, "-crlf", "-quiet")
			if err == nil || strings.Contains(out, "250 2.1.0") {
				t.Errorf("%s: the session went on: %v\n%s", name, err, out)
			}
			said := m.close()
			if !m.did {
				t.Errorf("%s: nothing was put in:\n%s", name, out)
			}
			// Behind the answer to the verb: what the handshake says, or for POP3 that it
			// will not be.
			for _, answer := range []string{"\r\n250", "\r\n354", "\r\nUSER", "\r\n+OK password"} {
				if strings.Contains(said, answer) {
					t.Errorf("%s: answered: %q", name, said)
				}
			}
		}
	}
	if got := s.fetch(t, n, b); len(got) != 0 {
		t.Errorf("stored %q", got)
	}
}

// middle is somebody between client and server.
type middle struct {
	addr string
	did  bool

	l    net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex
	said bytes.Buffer // by the server, behind the verb
}

// newMiddle listens beside a door and puts commands behind the verb: in one write with
// it, or in front of what the client says next.
func newMiddle(t *testing.T, d door, verb, commands string, late bool) *middle {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(d.ip(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	m := &middle{addr: l.Addr().String(), l: l}
	m.wg.Go(func() {
		client, err := l.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		server, err := net.DialTimeout("tcp", d.addr, 10*time.Second)
		if err != nil {
			t.Error(err)
			return
		}
		defer server.Close()
		m.wg.Go(func() {
			defer client.Close()
			io.Copy(io.MultiWriter(client, m), server)
		})
		next := false
		for b := make([]byte, 64<<10); ; {
			k, err := client.Read(b)
			if err != nil {
				return
			}
			p := string(b[:k])
			switch {
			case p == verb && late:
				next = true
			case p == verb:
				p, m.did = p+commands, true
			case next:
				p, m.did, next = commands+p, true, false
			}
			if p[:min(len(p), len(verb))] == verb {
				m.mu.Lock()
				m.said.Reset()
				m.mu.Unlock()
			}
			if _, err := io.WriteString(server, p); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { m.close() })
	return m
}

func (m *middle) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said.Write(p)
}

// close ends it and returns what the server said behind the verb.
func (m *middle) close() string {
	m.l.Close()
	m.wg.Wait()
	return "\r\n" + m.said.String()
}
