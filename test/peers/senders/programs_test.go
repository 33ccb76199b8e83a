//go:build peers

package senders

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"msgw/internal/lab"
)

// program is one that sends a message and ends: it has no queue.
type program struct {
	name string
	// run sends a message and says how it ended: with 0 if the message was accepted.
	run func(t *testing.T, d difficult, ca string, args ...string) (code int, out string)
	// recorded are the arguments that lead it through the relay.
	recorded []string
}

// TestPrograms: what is used from scripts, and by those who look for a fault.
func TestPrograms(t *testing.T) {
	tools.Versions(t)
	postfix.Versions(t)
	w := newWorld(t)
	for _, p := range []struct {
		program
		octets
	}{
		{swaks(), octets{
			ways: []string{"file"},
			// It does not double the dot that a message begins with, so that one ends there.
			without: []string{"dot-first"},
			refuses: []string{
				"empty by file: 1", "crlf by file: 1", // its options cannot say so little
				"smtputf8 by file: 23", // it does not know SMTPUTF8, and the site demands it
			},
			carries: []string{"20 MB", "DATA", "NUL", "bare CR", "invalid UTF-8", "leading dot", "line over 64 KiB", "line over 998", "null sender", "two mailboxes"},
		}},
		{msmtp(w.site(1)), octets{
			ways:    []string{"file"},
			refuses: []string{"smtputf8 by file: 65"}, // as swaks
			carries: []string{"20 MB", "DATA", "NUL", "bare CR", "empty body", "header only", "invalid UTF-8", "leading dot", "line over 64 KiB", "line over 998", "null sender", "two mailboxes"},
		}},
	} {
		t.Run(p.name+", verified", func(t *testing.T) { verified(t, w, p.program) })
		t.Run(p.name+", octet by octet", func(t *testing.T) {
			octetByOctet(t, w, p.name, p.octets, func(d difficult) string {
				code, out := p.run(t, d, "", p.recorded...)
				if code == 0 {
					return ""
				}
				t.Logf("%s: %.2000s", d.name, out)
				return fmt.Sprint(code)
			}, func() string { return "" })
		})
	}
	t.Run("smtp-source", func(t *testing.T) { load(t, w) })
}

// verified: it sends over TLS if it trusts the lab's CA, and not if it trusts another.
func verified(t *testing.T, w *world, p program) {
	box, b := w.box(t), &batch{seed: 1}
	next := func() difficult {
		return difficult{from: "reports@" + senderHost, to: []string{box.Address}, octets: b.octets(b.sent)}
	}
	for range 4 {
		if code, out := p.run(t, next(), w.trust(t, tools)); code != 0 {
			t.Errorf("exit code %d\n%s", code, out)
		}
		b.sent++
	}
	code, out := p.run(t, next(), strangeCA(t, tools))
	if code == 0 || !strings.Contains(out, "verif") && !strings.Contains(out, "not trusted") {
		t.Errorf("with a strange CA: exit code %d\n%s", code, out)
	}
	if p.name == "swaks" {
		// Port 25 does not speak TLS from the start, and says so by ending.
		if code, out := p.run(t, next(), "", "--tls-on-connect", "--port", "25"); code != 29 {
			t.Errorf("TLS on connect: exit code %d\n%s", code, out)
		}
	}
	b.complete(t, w.fetch(t, box))
}

// swaks finds a site by MX, as nobody names a server to it.
// https://www.jetmore.org/john/code/swaks/latest/doc/ref.txt
func swaks() program {
	p := program{name: "swaks", recorded: []string{"--local-interface", recordedFrom}}
	p.run = func(t *testing.T, d difficult, ca string, args ...string) (int, string) {
		from := d.from
		if from == "" {
			from = "<>"
		}
		file := filepath.Join(t.TempDir(), "message")
		// It puts a CRLF of its own behind the last line.
		if err := os.WriteFile(file, bytes.TrimSuffix(d.octets, crlf), 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file)
		args = append([]string{"--helo", senderHost, "--from", from, "--to", strings.Join(d.to, ","), "--data", "@" + file, "--hide-send"}, args...)
		if ca != "" {
			args = append(args, "--tls", "--tls-verify", "--tls-ca-path", ca)
		}
		return end(t, nil, "/usr/bin/swaks", args...)
	}
	return p
}

// msmtp looks up no MX and is told a host. https://marlam.de/msmtp/msmtp.html
func msmtp(site lab.NodeRow) program {
	p := program{name: "msmtp", recorded: []string{"--source-ip=" + recordedFrom}}
	p.run = func(t *testing.T, d difficult, ca string, args ...string) (int, string) {
		args = append([]string{"--host=" + site.Host, "--port=25", "--domain=" + senderHost, "--from=" + d.from}, args...)
		if ca != "" {
			args = append(args, "--tls=on", "--tls-starttls=on", "--tls-trust-file="+ca)
		}
		return end(t, d.octets, "/usr/bin/msmtp", append(append(args, "--"), d.to...)...)
	}
	return p
}

// end runs a program of the tools to its end.
func end(t *testing.T, stdin []byte, program string, args ...string) (code int, out string) {
	t.Helper()
	cmd := tools.Command(t.Context(), program, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(b)
}

// load: Postfix's own load generator sends 500 messages in 20 sessions, to one site and
// in clear. http://www.postfix.org/smtp-source.1.html
func load(t *testing.T, w *world) {
	box := w.box(t)
	start := time.Now()
	postfix.Output(t, "/usr/sbin/smtp-source", "-s", "20", "-m", "500", "-l", "4096", "-M", senderHost,
		"-f", "load@"+senderHost, "-t", box.Address, "inet:"+w.site(1).SMTP)
	t.Logf("500 messages of 4 KB in 20 sessions in %v", time.Since(start).Round(time.Millisecond))
	ids := map[string]bool{}
	for id, s := range w.fetch(t, box) {
		_, rest, ok := bytes.Cut(s.octets, []byte("Message-Id: "))
		line, _, _ := bytes.Cut(rest, crlf)
		if !ok || ids[string(line)] || len(s.octets) < 4096 {
			t.Errorf("%s: %s", id, glimpse(s.octets))
		}
		ids[string(line)] = true
	}
	if len(ids) != 500 {
		t.Errorf("%d messages arrived", len(ids))
	}
}
