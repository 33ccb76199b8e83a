//go:build power

package power

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab"
	"msgw/internal/node"
	"msgw/test/labtest"
)

// diskSize is larger than what a node keeps free, and what a test stores.
const diskSize = 2 << 30

// made are the appliances that machines start with, by number of sites. They are set up
// here, not in a machine: that is faster, and nothing of it is what is tested.
var made struct {
	sync.Mutex
	bySites [3]*appliance
}

type appliance struct {
	dir  string // of the nodes, here and in the machine
	disk string // raw, with dir in it
	file lab.File
}

func theAppliance(t *testing.T, sites int) *appliance {
	t.Helper()
	made.Lock()
	defer made.Unlock()
	if a := made.bySites[sites]; a != nil {
		return a
	}
	a := &appliance{dir: filepath.Join(built.dir, fmt.Sprint(sites)), disk: filepath.Join(built.dir, fmt.Sprintf("%d.raw", sites))}
	network := loopback()
	if sites == 1 {
		a.alone(t, network+".11")
	} else {
		l := labtest.Start(t, built.msgw, a.dir, "--net", network, "--mailboxes", "2")
		if out, err := l.End(syscall.SIGTERM); err != nil {
			t.Fatalf("lab: %v\n%s", err, out)
		}
		a.file = l.File()
	}
	// The serial console is slow.
	for _, n := range a.file.Nodes {
		f, err := os.OpenFile(n.Argv[len(n.Argv)-1], os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString("\n[log]\nlevel = \"warn\"\n")
		if cerr := f.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
	}
	if err := os.WriteFile(a.disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(a.disk, diskSize); err != nil {
		t.Fatal(err)
	}
	// As the image's data partition.
	command(t, "mkfs.ext4", "-q", "-F", "-T", "default", "-b", "4096", "-i", "16384", "-I", "256", "-m", "1", "-J", "size=64",
		"-E", "root_owner=0:0", "-d", a.dir, a.disk)
	made.bySites[sites] = a
	return a
}

// loopback returns a loopback network that nobody else is likely to use.
func loopback() string { return fmt.Sprintf("127.%d.%d", 64+rand.IntN(128), rand.IntN(256)) }

// alone sets up a site that has no other.
func (a *appliance) alone(t *testing.T, addr string) {
	t.Helper()
	if err := os.Mkdir(a.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n := lab.NodeRow{Name: "msgw1", Host: "msgw1." + lab.Zone, Role: "site", SMTP: addr + ":2525", POP3S: addr + ":1995", Dir: filepath.Join(a.dir, "msgw1")}
	config := filepath.Join(a.dir, "msgw1.toml")
	n.Argv = []string{built.msgw, "serve", "--config", config}
	text := fmt.Sprintf("name = %q\nstate = %q\n[listen]\nsmtp = %q\npop3 = \"%s:1110\"\npop3s = %q\ndns = \"%s:1053\"\npeer = \"%s:8451\"\n"+
		"[public]\nipv4 = [%q]\nsmtp_port = 2525\ndns_port = 1053\n", n.Name, n.Dir, n.SMTP, addr, n.POP3S, addr, addr, addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, built.msgw, "init", "--config", config, "--zone", lab.Zone)
	var log bytes.Buffer
	cmd := exec.Command(n.Argv[0], n.Argv[1:]...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(func() error {
		cmd.Process.Signal(syscall.SIGTERM)
		return cmd.Wait()
	})
	t.Cleanup(func() { stop() })
	client := admin.NewClient(n.Dir, node.SocketFile)
	labtest.Within(t, 30*time.Second, "the node makes a mailbox", func() error {
		for len(a.file.Mailboxes) < 2 {
			c, err := client.CreateMailbox(t.Context(), admin.CreateMailbox{})
			if err != nil {
				return err
			}
			a.file.Mailboxes = append(a.file.Mailboxes, lab.Mailbox{ID: c.ID, Address: c.Address, Password: c.Password})
		}
		return nil
	})
	pem, err := client.CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.file.Zone, a.file.CA, a.file.Nodes = lab.Zone, filepath.Join(a.dir, "ca.pem"), []lab.NodeRow{n}
	if err := os.WriteFile(a.file.CA, []byte(pem), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatalf("node: %v\n%s", err, log.Bytes())
	}
}

// newHardware makes a machine with a disk of its own, where program is msgw.
func newHardware(t *testing.T, sites int, program string) *hardware {
	t.Helper()
	a := theAppliance(t, sites)
	dir, err := os.MkdirTemp(built.dir, "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if keep := os.Getenv("MSGW_POWER_KEEP"); t.Failed() && keep != "" {
			command(t, "cp", "--sparse=always", filepath.Join(dir, "disk.raw"), filepath.Join(keep, filepath.Base(dir)+".raw"))
		}
		os.RemoveAll(dir)
	})
	h := &hardware{dir: dir, addr: loopback() + ".21", disk: filepath.Join(dir, "disk.raw"), initrd: filepath.Join(dir, "initrd"), file: a.file}
	command(t, "cp", "--sparse=always", a.disk, h.disk)
	if err := writeInitrd(h.initrd, program, a.dir, a.file); err != nil {
		t.Fatal(err)
	}
	return h
}

// command runs a program that has to succeed.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
