//go:build peers

// Package install follows docs/install.md, delegate.md, senders.md and archive.md to the
// letter, on machines of its own.
package install

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"msgw/test/labtest"
	"msgw/test/peers"
)

var (
	site1   = &peers.Root{Name: "site1", Packages: []string{"systemd", "nftables", "procps"}}
	site2   = &peers.Root{Name: "site2", Packages: []string{"systemd", "nftables", "procps"}}
	outside = &peers.Root{Name: "outside", Packages: []string{"nsd", "unbound", "bind9-dnsutils", "curl", "postfix"}}
)

func TestMain(m *testing.M) {
	(&peers.Suite{Roots: []*peers.Root{site1, site2, outside}}).Main(m)
}

// source is the top of the source tree.
const source = "../../.."

// box is a fenced block of a document: ```sh site1 says that its commands are for site1.
type box struct{ language, where, text string }

func boxes(t *testing.T, doc string) []box {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(source, "docs", doc))
	if err != nil {
		t.Fatal(err)
	}
	var all []box
	for _, m := range regexp.MustCompile("(?ms)^```(\\w*) ?(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(b), -1) {
		all = append(all, box{m[1], m[2], m[3]})
	}
	return all
}

const exampleID = "mbx-2a20342e96294505a35eb5c8364eb67c"

// TestDocuments installs two sites, delegates the zone, points a Postfix at it and
// looks into the mailbox, with the documents' own commands.
func TestDocuments(t *testing.T) {
	outside.Versions(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	machines := map[string]machine{"site1": newMachine(t, site1, "site1", "192.0.2.1"), "site2": newMachine(t, site2, "site2", "198.51.100.1")}
	t.Cleanup(func() {
		for name, m := range machines {
			if b, err := os.ReadFile(m.root.Path("/var/log/msgw.log")); err == nil && t.Failed() {
				t.Logf("log of %s:\n%s", name, b)
			}
		}
	})

	var token, id, password string
	ran := 0
	for _, b := range boxes(t, "install.md") {
		if b.language != "sh" {
			continue
		}
		ran++
		names := []string{b.where}
		if b.where == "both" {
			names = []string{"site1", "site2"}
		}
		for _, name := range names {
			m, ok := machines[name]
			if !ok {
				t.Fatalf("install.md: for %q:\n%s", name, b.text)
			}
			if ran == 1 {
				m.receive(t, source)
			}
			if strings.Contains(b.text, "\nmsgw status") || strings.HasPrefix(b.text, "msgw status") {
				settled(t, m)
			}
			out := m.sh(t, strings.ReplaceAll(b.text, "TOKEN", token))
			switch {
			case strings.HasPrefix(b.text, "msgw invite"):
				token = field(t, out, `(?m)^\s*(?:msgw join )?(\S{60,})$`)
			case strings.HasPrefix(b.text, "msgw mailbox create"):
				id, password = field(t, out, `(mbx-[0-9a-f]{32})`), field(t, out, `(?mi)^password:?\s+(.*)$`)
			}
		}
	}
	if ran < 10 || token == "" || password == "" {
		t.Fatalf("install.md: %d boxes, token %v, password %v", ran, token != "", password != "")
	}

	// The zone is delegated with the document's own lines.
	for _, b := range boxes(t, "delegate.md") {
		if b.language == "zone" {
			peers.ServeDelegation(t, outside, b.text)
		}
	}
	peers.Unbound(t, outside, 0)
	for _, b := range boxes(t, "delegate.md") {
		if b.language != "sh" {
			continue
		}
		for line := range strings.Lines(b.text) {
			out := outside.Output(t, "/bin/sh", "-euc", line)
			t.Logf("outside$ %s\n%s", strings.TrimSpace(line), out)
			switch {
			case strings.Contains(line, "SOA"):
				if !strings.Contains(out, " aa") || !strings.Contains(out, "status: NOERROR") {
					t.Errorf("%s\nis not answered with authority:\n%s", line, out)
				}
			default:
				for _, host := range []string{"msgw1.msgw.example.com.", "msgw2.msgw.example.com."} {
					if !strings.Contains(out, host) {
						t.Errorf("%s\ndoes not name %s:\n%s", line, host, out)
					}
				}
			}
		}
	}

	// Postfix sends a copy of what it delivers.
	startPostfix(t)
	for _, b := range boxes(t, "senders.md") {
		switch {
		case b.language == "sh" && b.where == "restrict": // for another mailbox
			site := machines["site1"]
			other := field(t, site.sh(t, "msgw mailbox create"), `(mbx-[0-9a-f]{32})`)
			out := site.sh(t, strings.ReplaceAll(b.text, exampleID, other))
			for _, want := range []string{`allow +microsoft365,192\.0\.2\.0/24 +this mailbox`, `require-tls +yes +all`, `max-size +150 MiB +all`,
				`client-name +mail\.protection\.outlook\.com +this mailbox`, `microsoft365 +40\.107\.0\.0/16`} {
				field(t, out, "("+want+")")
			}
		case b.language == "sh":
			outside.Output(t, "/bin/sh", "-euc", strings.ReplaceAll(b.text, exampleID, id))
		}
	}
	sendmail := outside.Command(t.Context(), "/usr/sbin/sendmail", "-f", "alice@mail.example.com", "bob@mail.example.com")
	sendmail.Stdin = strings.NewReader("From: alice@mail.example.com\nTo: bob@mail.example.com\nSubject: lunch\n\nAt noon?\n")
	if out, err := sendmail.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v\n%s", err, out)
	}

	// The archive finds it, at one of the sites.
	outside.Write(t, "/root/ca.pem", machines["site1"].sh(t, "msgw ca"), 0o644)
	var commands []string
	for _, b := range boxes(t, "archive.md") {
		if b.language == "sh" {
			commands = append(commands, strings.Split(strings.TrimSpace(strings.ReplaceAll(b.text, exampleID, id)), "\n")...)
		}
	}
	if len(commands) != 2 {
		t.Fatalf("archive.md: %d commands", len(commands))
	}
	curl := func(command string) string {
		cmd := outside.Command(t.Context(), "/bin/sh", "-euc", "cd /root; "+command)
		cmd.Env = append(cmd.Env, "PASSWORD="+password)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		return string(out)
	}
	labtest.Within(t, 2*time.Minute, "Postfix's copy waits", func() error {
		for _, command := range commands {
			if strings.TrimSpace(curl(command)) != "" {
				if msg := curl(command + "1"); !strings.Contains(msg, "At noon?") {
					t.Fatalf("%s1:\n%s", command, msg)
				}
				return nil
			}
		}
		return os.ErrNotExist
	})

	// The firewall holds: metrics and SSH are closed, the peer port is closed to strangers.
	for _, addr := range []string{"192.0.2.1", "198.51.100.1"} {
		for port, open := range map[string]bool{"25": true, "53": true, "110": true, "995": true, "8451": false, "22": false} {
			if got := reachable(addr, port); got != open {
				t.Errorf("port %s of %s open to strangers: %v, expected %v", port, addr, got, open)
			}
		}
	}
}

// settled waits until nothing needs a person.
func settled(t *testing.T, m machine) {
	t.Helper()
	labtest.Within(t, time.Minute, m.name+" is well", func() error {
		return exec.Command("ip", "netns", "exec", m.name, "chroot", m.root.Path("/"), "/usr/bin/msgw", "status").Run()
	})
}

func field(t *testing.T, out, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no %s in:\n%s", pattern, out)
	}
	return strings.TrimSpace(m[1])
}

// startPostfix runs the mail server of mail.example.com, which delivers locally into
// nothing.
func startPostfix(t *testing.T) {
	t.Helper()
	outside.Output(t, "/bin/sh", "-euc", `
postconf -e 'myhostname = mail.example.com' 'mydestination =' 'inet_interfaces = loopback-only' 'inet_protocols = ipv4' \
	'virtual_mailbox_domains = mail.example.com' 'virtual_mailbox_maps = static:all' 'virtual_transport = discard:' \
	'maillog_file = /var/log/postfix.log' 'compatibility_level = 3.6'
grep -q ^postlog /etc/postfix/master.cf || echo 'postlog unix-dgram n - n - 1 postlogd' >>/etc/postfix/master.cf
sed -i 's/^\(smtp  *unix  *-  *-  *\)y/\1n/' /etc/postfix/master.cf
postfix start`)
	t.Cleanup(func() {
		if b, err := os.ReadFile(outside.Path("/var/log/postfix.log")); err == nil && t.Failed() {
			t.Logf("Postfix:\n%s", b)
		}
	})
}

// reachable says whether a stranger can open a connection.
func reachable(addr, port string) bool {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, port), 2*time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
