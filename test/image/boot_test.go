//go:build image

package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
)

const (
	zone = "msgw.example.com"
	host = "msgw1." + zone
)

// seed is what an operator attaches.
func seed() map[string]string {
	return map[string]string{"msgw.toml": config, "first-boot": "init --zone " + zone + "\n", "root-password": testHash + "\n", "peers": "192.0.2.2\n"}
}

// TestAppliance is the life of one machine: its first configuration, a day's work, a
// reboot, the power button, and a start from its disk as a BIOS starts it.
func TestAppliance(t *testing.T) {
	t.Parallel()
	t.Logf("%s", strings.SplitN(command(t, "qemu-system-x86_64", "--version"), "\n", 2)[0])
	h := newHardware(t, built)
	var mail office
	t.Run("first boot", func(t *testing.T) { firstBoot(t, h, &mail) })
	if t.Failed() {
		return
	}
	t.Run("reboot", func(t *testing.T) { afterReboot(t, h, &mail) })
	if t.Failed() {
		return
	}
	t.Run("BIOS", func(t *testing.T) { wholeDisk(t, h, &mail) })
}

func firstBoot(t *testing.T, h *hardware, o *office) {
	m := h.start(t, h.direct, volume(t, seed())...)
	m.greeted(t, 150*time.Second)
	m.expect(t, 30*time.Second, `msgw-seed: volume CIDATA on /dev/sr0: took msgw.toml, first-boot, root-password, peers\r`)
	m.expect(t, 30*time.Second, `msgw-seed: the node is made: msgw init --zone msgw.example.com\r`)
	m.expect(t, 60*time.Second, `msgw login: `)
	m.login(t, "guess", false)
	m.login(t, testPassword, true)
	if !strings.Contains(m.all(), "msgw msgw1  address 10.0.2.15 ") {
		t.Error("the prompt does not show name and address")
	}
	healthy(t, m)
	settled(t, m)
	t.Logf("guest: kernel %s, %s, %s", m.must(t, "uname -r"), strings.SplitN(m.must(t, "systemctl --version"), "\n", 2)[0], m.must(t, "msgw version"))
	t.Run("disks", func(t *testing.T) { checkDisks(t, m) })
	t.Run("mail", func(t *testing.T) { o.open(t, m) })

	// The watchdog takes half a minute: other things are looked at meanwhile.
	m.must(t, "systemctl kill -s STOP msgw")
	stopped := time.Now()
	t.Run("settings", func(t *testing.T) { checkSettings(t, m) })
	t.Run("watchdog", func(t *testing.T) {
		within(t, 90*time.Second, "msgw is started again", func() error {
			out := m.must(t, "systemctl show msgw -p NRestarts -p ActiveState")
			if !strings.Contains(out, "NRestarts=1\n") || !strings.Contains(out, "ActiveState=active") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		t.Logf("msgw hung, and was back after %.0f s", time.Since(stopped).Seconds())
		if out := m.must(t, "journalctl -u msgw -o cat --no-pager | grep -i watchdog"); !strings.Contains(out, "Watchdog timeout") {
			t.Errorf("the journal says: %s", out)
		}
	})
	t.Run("peer port", func(t *testing.T) { checkPeerPort(t, m) })
	o.machineID = m.must(t, "cat /etc/machine-id")
	if strings.Contains(m.all(), testHash) {
		t.Error("the console shows the hash")
	}
	start := time.Now()
	m.typed(t, "systemctl reboot")
	m.off(t, 60*time.Second)
	t.Logf("down %.1f s after systemctl reboot", time.Since(start).Seconds())
	if strings.Contains(m.all(), "FAILED") {
		t.Error("the console says that something failed")
	}
}

// healthy says whether all came up that should have.
func healthy(t *testing.T, m *machine) {
	t.Helper()
	state, _ := m.run(t, 90*time.Second, "systemctl is-system-running --wait")
	if failed := m.must(t, "systemctl --failed --no-legend --plain"); failed != "" || state != "running" {
		t.Errorf("the system is %s, failed: %q\n%s", state, failed, m.must(t, "journalctl -b -p err --no-pager"))
	}
}

// settled waits until msgw itself says that all is well: it elects a leader first.
func settled(t *testing.T, m *machine) {
	t.Helper()
	within(t, 30*time.Second, "msgw status has no trouble", func() error {
		if out, code := m.run(t, 30*time.Second, "msgw status"); code != 0 {
			return fmt.Errorf("exit code %d\n%s", code, out)
		}
		return nil
	})
}

func checkDisks(t *testing.T, m *machine) {
	if out := strings.Join(strings.Fields(m.must(t, "findmnt -no SOURCE,FSTYPE,OPTIONS /")), " "); !strings.HasPrefix(out, "/dev/dm-0 erofs ro,") {
		t.Errorf("root: %s", out)
	}
	if out := m.must(t, "cat /sys/module/dm_verity/refcnt; ls /sys/block/dm-0/slaves"); out != "1\nvda3" {
		t.Errorf("dm-verity: %q", out)
	}
	if out, code := m.run(t, 10*time.Second, "touch /usr/bin/x"); code == 0 || !strings.Contains(out, "Read-only file system") {
		t.Errorf("writing to root: %d %s", code, out)
	}
	size, err := strconv.ParseInt(strings.TrimSpace(m.must(t, "findmnt -bno SIZE /var")), 10, 64)
	if err != nil || size < 2_200<<20 {
		t.Errorf("/var has %d octets on a disk of 3 GiB: %v", size, err)
	}
	if out := m.must(t, "stat -c '%U %G %a %u' /var/lib/msgw"); out != "msgw msgw 700 825" {
		t.Errorf("state directory: %s", out)
	}
	// /etc is in memory, but for what links to /var.
	if out := m.must(t, "findmnt -no FSTYPE /etc; readlink /etc/msgw; find / -xdev -perm /6000"); out != "overlay\n/var/lib/msgw-config" {
		t.Errorf("/etc, /etc/msgw, programs with other rights: %q", out)
	}
}

func checkSettings(t *testing.T, m *machine) {
	if out := m.must(t, "nft list set inet msgw peers4"); !strings.Contains(out, "elements = { 192.0.2.2 }") {
		t.Errorf("peers: %s", out)
	}
	if out := m.must(t, "nft list chain inet msgw input"); !strings.Contains(out, "policy drop;") || !strings.Contains(out, "tcp dport 25 accept") {
		t.Errorf("rules: %s", out)
	}
	text, err := os.ReadFile(top("deploy/sysctl.conf"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		key, want, ok := strings.Cut(strings.TrimSpace(line), " = ")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		n++
		if got := m.must(t, "cat /proc/sys/"+strings.ReplaceAll(key, ".", "/")); got != want {
			t.Errorf("%s is %q, expected %s", key, got, want)
		}
	}
	if n < 20 {
		t.Errorf("%d settings were found in sysctl.conf", n)
	}
	// The length of the accept queue stands in the second column of ss -l.
	if out := m.must(t, "ss -Hltn 'sport = :25' | awk '{ print $3 }'"); out != "4096" {
		t.Errorf("the accept queue of port 25 has length %s", out)
	}
	if out := m.must(t, "systemctl show msgw -p User -p LogRateLimitIntervalUSec -p WatchdogUSec"); !strings.Contains(out, "User=msgw") ||
		!strings.Contains(out, "LogRateLimitIntervalUSec=0") || !strings.Contains(out, "WatchdogUSec=30s") {
		t.Errorf("service: %s", out)
	}
	m.must(t, "systemctl is-active chrony systemd-networkd systemd-resolved nftables")
	m.must(t, "mpop --version && curl --version")
}

// checkPeerPort: a machine that is not in the set does not get through.
func checkPeerPort(t *testing.T, m *machine) {
	try := func() error {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 4 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"x"}}}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		c, err := d.DialContext(ctx, "tcp", m.hardware.at("tcp:8451"))
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := try(); err == nil || strings.Contains(err.Error(), "remote error: tls") {
		t.Errorf("the peer port answers a stranger: %v", err)
	}
	// The same, let in: TLS answers, if only to refuse.
	m.must(t, "echo 'add element inet msgw peers4 { 10.0.2.2 }' >>/etc/msgw/peers.nft && systemctl reload nftables")
	if err := try(); err != nil && !strings.Contains(err.Error(), "remote error: tls") {
		t.Errorf("the peer port does not answer a peer: %v", err)
	}
}

// office sends mail to the appliance and fetches it.
type office struct {
	box       admin.Credentials
	roots     *x509.CertPool
	waiting   []byte // the message that was not fetched
	machineID string
}

// open makes a mailbox, sends two messages, and fetches the first.
func (o *office) open(t *testing.T, m *machine) {
	out := m.must(t, "msgw mailbox create --description 'Example Ltd' --json")
	if err := json.Unmarshal([]byte(out), &o.box); err != nil || o.box.Password == "" {
		t.Fatalf("%s: %v", out, err)
	}
	var c struct{ CA struct{ Certificate string } }
	if err := json.Unmarshal([]byte(m.must(t, "cat /var/lib/msgw/config.json")), &c); err != nil {
		t.Fatal(err)
	}
	o.roots = x509.NewCertPool()
	if !o.roots.AppendCertsFromPEM([]byte(c.CA.Certificate)) {
		t.Fatal("the appliance's CA does not parse")
	}
	o.askMX(t, m)
	fetched, waiting := report.New(1, 1, 200_000), report.New(1, 2, 50_000)
	o.send(t, m, fetched)
	o.fetch(t, m, fetched, archive.Config{Address: m.hardware.at("tcp:995")})
	o.send(t, m, waiting)
	o.waiting = waiting
}

func (o *office) askMX(t *testing.T, m *machine) {
	t.Helper()
	c := dns.Client{Net: "udp", Timeout: 5 * time.Second}
	in, _, err := c.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(zone+".", dns.TypeMX), m.hardware.at("udp:53"))
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Answer) != 1 || in.Answer[0].(*dns.MX).Mx != host+"." || !in.Authoritative {
		t.Errorf("MX: %v", in)
	}
}

func (o *office) send(t *testing.T, m *machine, msg []byte) {
	t.Helper()
	s, err := sender.New(sender.Config{Servers: []string{m.hardware.at("udp:53")}, Helo: "journal.example.net", RequireTLS: true,
		Address:  func(netip.Addr) netip.AddrPort { return netip.MustParseAddrPort(m.hardware.at("tcp:25")) },
		TLS:      &tls.Config{RootCAs: o.roots},
		Timeouts: sender.Timeouts{Query: 5 * time.Second, Connect: 10 * time.Second, Reply: 30 * time.Second, Block: 30 * time.Second, Final: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.Send(t.Context(), sender.Envelope{To: []string{o.box.Address}, Chunks: &sender.Chunks{Sizes: []int{65536}}}, msg)
	if err != nil || !res.TLS || res.Host != host {
		t.Fatalf("%+v %v", res, err)
	}
}

// fetch fetches the one message that has to wait, and deletes it.
func (o *office) fetch(t *testing.T, m *machine, want []byte, cfg archive.Config) {
	t.Helper()
	cfg.User, cfg.Password, cfg.TLS = o.box.ID, o.box.Password, &tls.Config{RootCAs: o.roots, ServerName: host}
	var got [][]byte
	res, err := archive.Fetch(t.Context(), cfg, true, func(_ string, msg []byte) error {
		got = append(got, msg)
		return nil
	})
	if err != nil || res.Deleted != 1 || len(got) != 1 || !bytes.Equal(got[0], want) {
		t.Fatalf("fetched %+v, %d messages, the same octets %v: %v", res, len(got), len(got) == 1 && bytes.Equal(got[0], want), err)
	}
}

// mpop plays the archive on the machine itself, and leaves the message there.
func (o *office) mpop(t *testing.T, m *machine) {
	t.Helper()
	m.must(t, "printf '%s\\n' '"+strings.ReplaceAll(o.box.Password, "'", `'\''`)+"' >/tmp/password")
	m.must(t, "mpop --host=127.0.0.1 --port=995 --tls --tls-starttls=off --tls-certcheck=off --user="+o.box.ID+
		" --passwordeval='cat /tmp/password' --keep=on --delivery=mbox,/tmp/mail")
	if out := m.must(t, "grep -c '^From ' /tmp/mail"); out != "1" {
		t.Errorf("mpop fetched %s messages", out)
	}
}

// afterReboot starts the machine without its seed.
func afterReboot(t *testing.T, h *hardware, o *office) {
	m := h.start(t, h.direct)
	m.greeted(t, 150*time.Second)
	m.expect(t, 30*time.Second, `msgw-seed: configured already, no seed is read\r`)
	m.expect(t, 60*time.Second, `msgw login: `)
	m.login(t, testPassword, true)
	healthy(t, m)
	if id := m.must(t, "cat /etc/machine-id"); id != o.machineID || len(id) != 32 {
		t.Errorf("machine id %q became %q", o.machineID, id)
	}
	if out, _ := m.run(t, 10*time.Second, "dmesg | grep 'recovery complete'"); out != "" {
		t.Errorf("/var was not unmounted cleanly: %s", out)
	}
	settled(t, m)
	o.askMX(t, m)
	o.fetch(t, m, o.waiting, archive.Config{Address: m.hardware.at("tcp:110"), STLS: true})
	o.send(t, m, o.waiting)
	o.mpop(t, m)
	start := time.Now()
	m.powerButton(t)
	m.off(t, 60*time.Second)
	t.Logf("off %.1f s after the power button", time.Since(start).Seconds())
}

// wholeDisk starts the disk as it is, and then damages it.
func wholeDisk(t *testing.T, h *hardware, o *office) {
	m := h.start(t, h.bios)
	m.greeted(t, 150*time.Second)
	o.fetch(t, m, o.waiting, archive.Config{Address: m.hardware.at("tcp:995")})
	m.expect(t, 60*time.Second, `msgw login: `)
	m.login(t, testPassword, true)
	healthy(t, m)
	// What is not as it was built cannot be read. The middle of the partition holds
	// programs and libraries, that of cat among them or not.
	m.must(t, "dd if=/dev/zero of=/dev/vda3 bs=1M seek=40 count=8 oflag=direct conv=notrunc status=none; echo 3 >/proc/sys/vm/drop_caches")
	if out, _ := m.run(t, 90*time.Second, "cat /usr/bin/* /usr/lib/x86_64-linux-gnu/*.so* >/dev/null"); !strings.Contains(out, "Input/output error") {
		t.Errorf("after overwriting 8 MiB of the root partition: %q", out)
	}
}

// TestSeeds starts a machine with seeds that are not enough, and with one that is.
func TestSeeds(t *testing.T) {
	t.Parallel()
	h := newHardware(t, built)
	t.Run("refused", func(t *testing.T) {
		bad := seed()
		bad["msgw.toml"] += "nam = 1\n"
		m := h.start(t, h.direct, stick(t, bad)...)
		m.expect(t, 150*time.Second, `msgw-seed: refused: volume CIDATA on /dev/vdb: msgw.toml: line 5: unknown key public.nam\r`)
		prompt := m.expect(t, 60*time.Second, `msgw login: `)
		for _, want := range []string{"The seed was refused: volume CIDATA on /dev/vdb: msgw.toml: line 5", "has no configuration", "Nobody can log in here"} {
			if !strings.Contains(prompt, want) {
				t.Errorf("the prompt does not say %q:\n%s", want, prompt)
			}
		}
		m.login(t, testPassword, false)
		m.powerButton(t)
		m.off(t, 60*time.Second)
	})
	t.Run("not configured", func(t *testing.T) {
		m := h.start(t, h.direct, stick(t, map[string]string{"root-password": testHash})...)
		m.expect(t, 150*time.Second, `msgw-seed: volume CIDATA on /dev/vdb: took root-password\r`)
		prompt := m.expect(t, 60*time.Second, `msgw login: `)
		if !strings.Contains(prompt, "has no configuration") {
			t.Errorf("the prompt says:\n%s", prompt)
		}
		m.login(t, testPassword, true)
		healthy(t, m)
		if out := m.must(t, "ls /etc/msgw/; ls -A /var/lib/msgw; systemctl is-active msgw || true"); out != "root-password\ninactive" {
			t.Errorf("configuration, state and service: %q", out)
		}
		m.powerButton(t)
		m.off(t, 60*time.Second)
	})
	t.Run("UEFI and credentials", func(t *testing.T) {
		s := seed()
		m := h.start(t, h.uefi, "-smbios", "type=11,value=io.systemd.credential.binary:msgw.toml="+base64.StdEncoding.EncodeToString([]byte(s["msgw.toml"])),
			"-smbios", "type=11,value=io.systemd.credential:msgw.first-boot=init --zone "+zone,
			"-fw_cfg", "name=opt/io.systemd.credentials/msgw.root-password,string="+testHash)
		m.greeted(t, 200*time.Second)
		m.expect(t, 30*time.Second, `msgw-seed: credentials: took msgw.toml, first-boot, root-password\r`)
		m.expect(t, 60*time.Second, `msgw login: `)
		m.login(t, testPassword, true)
		healthy(t, m)
		m.must(t, "test -d /sys/firmware/efi")
		settled(t, m)
		if strings.Contains(m.all(), testHash) {
			t.Error("the console shows the hash")
		}
	})
}
