//go:build bench && peers

package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msgw/test/labtest"
)

// dovecot takes mail by LMTP and stores it in maildirs, encrypted by its plugin
// mail_crypt unless plain. The settings are those of https://doc.dovecot.org/2.3/.
type dovecot struct {
	target
	dir, name, ip string
	plain         bool
	pop3          bool // hands it over by POP3
	g             *group
}

func newDovecot(dir, name, ip string) *dovecot {
	return &dovecot{dir: filepath.Join(dir, name), name: name, ip: ip}
}

// user is the recipient of a sender's messages.
func user(sender int) string { return fmt.Sprintf("box%d@example.org", sender%mailboxes) }

// nobody is Debian's user and group of that name.
const nobody = 65534

func (d *dovecot) group() *group { return d.g }

func (d *dovecot) start(t *testing.T) {
	t.Helper()
	d.g = newGroup(t, d.name)
	d.up(t)
}

// up starts it in its group.
func (d *dovecot) up(t *testing.T) {
	t.Helper()
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mail := directory(t, d.dir, "mail")
	if err := os.Chown(mail, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cert, client := certificate(t, d.dir)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	protocol, plugin, handover := "", "mail_crypt", ""
	if d.plain {
		plugin = ""
	}
	if d.pop3 {
		protocol = "pop3"
		handover = fmt.Sprintf(`
service pop3-login {
  inet_listener pop3 {
    port = 0
  }
  inet_listener pop3s {
    address = %s
    port = 995
    ssl = yes
  }
}`, d.ip)
	}
	base := "/srv/" + d.name
	servers.Write(t, base+"/private.pem", string(keyPEM(t, key)), 0o644)
	servers.Write(t, base+"/public.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), 0o644)
	servers.Write(t, base+"/dovecot.conf", fmt.Sprintf(`
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[2]s/log
protocols = lmtp %[6]s
ssl = yes
ssl_cert = <%[3]s
ssl_key = <%[3]s
mail_location = maildir:%[2]s/mail/%%u
mail_plugins = %[7]s
plugin {
  mail_crypt_global_public_key = <%[1]s/public.pem
  mail_crypt_global_private_key = <%[1]s/private.pem
  mail_crypt_save_version = 2
}
userdb {
  driver = static
  args = uid=%[5]d gid=%[5]d home=%[2]s/mail/%%u allow_all_users=yes
}
passdb {
  driver = static
  args = nopassword=y
}
service lmtp {
  process_limit = 200
  inet_listener lmtp {
    address = %[4]s
    port = 24
  }
}
%[8]s
`, base, d.dir, cert, d.ip, nobody, protocol, plugin, handover), 0o644)
	d.target = target{addr: d.ip + ":24", lmtp: true, tls: client, to: user}
	cmd := servers.Command(context.WithoutCancel(t.Context()), "/usr/sbin/dovecot", "-F", "-c", base+"/dovecot.conf")
	running(t, d.g, cmd, d.dir+"/log")
	answers(t, d.addr)
}

// running starts a server in a group until the test ends, and shows the end of its log
// if that failed.
func running(t *testing.T, g *group, cmd *exec.Cmd, log string) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	started := g.adopt(t, cmd)
	err := cmd.Start()
	started()
	if err != nil {
		t.Fatalf("%s: %v", cmd.Path, err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if b, _ := os.ReadFile(log); t.Failed() {
			t.Logf("end of %s:\n%s", log, b[max(0, len(b)-3000):])
		}
	})
}

func (d *dovecot) load(_ *testing.T, c cell, warm, measured time.Duration) *load {
	return d.send(c, warm, measured)
}

// settle has nothing to wait for: what is acknowledged is there.
func (d *dovecot) settle(*testing.T, int) {}

// stored returns the files of all messages.
func (d *dovecot) stored(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(d.dir, "mail", "*", "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (d *dovecot) take(t *testing.T, n, size int) {
	t.Helper()
	files := d.stored(t)
	if len(files) != n {
		t.Errorf("%s: %d messages acknowledged, %d found", d.name, n, len(files))
	}
	// A line ends with LF in a maildir.
	least := int64(size - bytes.Count(letter(size), []byte("\n")))
	for i, file := range files {
		info, err := os.Stat(file)
		if err == nil && info.Size() < least {
			err = fmt.Errorf("%s: %d octets stored of a message of %d", d.name, info.Size(), size)
		}
		if err == nil && i == 0 {
			var b []byte
			if b, err = os.ReadFile(file); err == nil && !strings.HasPrefix(string(b), "CRYPTED") {
				err = fmt.Errorf("%s: %s is not encrypted", d.name, file)
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
	users, err := filepath.Glob(filepath.Join(d.dir, "mail", "*"))
	for _, u := range users {
		if err == nil {
			err = os.RemoveAll(u)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// postfix takes mail by SMTP and delivers it to Dovecot by LMTP. The settings are those
// of http://www.postfix.org/postconf.5.html, Debian's but for the ones below.
type postfix struct {
	target
	dir, ip string
	into    *dovecot
	g       *group
}

func newPostfix(dir string, into *dovecot, ip string) *postfix {
	return &postfix{dir: filepath.Join(dir, "postfix"), ip: ip, into: into}
}

func (p *postfix) group() *group { return p.g }

func (p *postfix) start(t *testing.T) {
	t.Helper()
	p.g = newGroup(t, "postfix")
	p.into.g = p.g // what it costs to deliver is part of what it costs
	p.into.up(t)
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The queue belongs on the disk: the root itself is in memory.
	const queue = "/var/spool/postfix"
	servers.Output(t, "/bin/cp", "-a", queue, p.dir+"/queue")
	if err := unix.Mount(p.dir+"/queue", servers.Path(queue), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(servers.Path(queue), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cert, client := certificate(t, p.dir)
	servers.Write(t, "/etc/postfix/main.cf", strings.Join([]string{
		"compatibility_level = 3.6",
		"maillog_file = /var/log/postfix.log",
		"myhostname = " + serverName,
		"mydestination =",
		"inet_protocols = ipv4",
		"inet_interfaces = " + p.ip,
		"mynetworks = 127.0.0.0/8", // no limits for those who send from here
		"smtpd_relay_restrictions = permit_mynetworks, reject",
		"smtpd_peername_lookup = no",
		"message_size_limit = 0",
		"mailbox_size_limit = 0",
		"smtpd_tls_chain_files = " + cert,
		"smtpd_tls_security_level = may",
		"virtual_mailbox_domains = example.org",
		"virtual_mailbox_maps = static:box",
		"virtual_transport = lmtp:inet:[" + p.into.ip + "]:24",
	}, "\n")+"\n", 0o644)
	p.target = target{addr: p.ip + ":25", tls: client, to: user}
	// It listens on addresses that an interface has, and all of 127.0.0.0/8 but one is
	// only a route.
	if out, err := exec.Command("ip", "address", "add", p.ip+"/8", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	// The master itself, as `postfix start` would run it.
	cmd := servers.Command(context.WithoutCancel(t.Context()), "/usr/sbin/postfix", "start-fg")
	running(t, p.g, cmd, servers.Path("/var/log/postfix.log"))
	answers(t, p.addr)
}

func (p *postfix) load(_ *testing.T, c cell, warm, measured time.Duration) *load {
	return p.send(c, warm, measured)
}

// settle waits for the queue to become empty.
func (p *postfix) settle(t *testing.T, n int) {
	t.Helper()
	labtest.Within(t, 5*time.Minute, "Postfix has delivered what it took", func() error {
		if found := len(p.into.stored(t)); found < n {
			return fmt.Errorf("%d of %d delivered", found, n)
		}
		return nil
	})
}

func (p *postfix) take(t *testing.T, n, size int) { p.into.take(t, n, size) }
