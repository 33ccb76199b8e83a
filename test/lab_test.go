package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/test/labtest"
)

// loopback returns a loopback network that no other lab is likely to use.
func loopback() string { return fmt.Sprintf("127.%d.%d", 64+rand.IntN(128), rand.IntN(256)) }

func alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil }

func gone(t *testing.T, f lab.File) {
	t.Helper()
	labtest.Within(t, 10*time.Second, "nodes have ended", func() error {
		for _, n := range f.Nodes {
			if alive(n.PID) {
				return fmt.Errorf("%s runs as %d", n.Name, n.PID)
			}
		}
		return nil
	})
}

func TestLab(t *testing.T) {
	t.Parallel()
	dir, netw := t.TempDir(), loopback()
	l := labtest.Start(t, program, dir, "--net", netw, "--mailboxes", "3")
	f := l.File()

	// lab.json has the keys that tools read, and nobody else may read it.
	b, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"zone", "ca", "nodes", "mailboxes", "name", "host", "role", "addr", "smtp", "pop3", "pop3s", "dns", "console", "pid", "argv", "dir", "id", "address", "password"} {
		if !bytes.Contains(b, []byte(`"`+key+`":`)) {
			t.Errorf("lab.json has no key %q", key)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "lab.json")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("lab.json: %v %v", fi.Mode(), err)
	}
	if len(f.Nodes) != 2 || len(f.Mailboxes) != 3 || f.Nodes[0].SMTP != netw+".11:2525" || f.Nodes[1].DNS != netw+".12:1053" {
		t.Fatalf("lab.json: %+v", f)
	}
	for _, n := range f.Nodes {
		if !alive(n.PID) {
			t.Errorf("%s does not run as %d", n.Name, n.PID)
		}
		for _, a := range []string{n.SMTP, n.POP3, n.POP3S, n.DNS, n.Peer, n.Metrics} {
			c, err := net.DialTimeout("tcp", a, time.Second)
			if err != nil {
				t.Errorf("%s: %v", n.Name, err)
				continue
			}
			c.Close()
		}
	}

	// A second lab in the directory is refused.
	if out, err := l.Msgw("lab", "--dir", dir, "--net", netw); exitCodeOf(err) != 2 || !strings.Contains(out, "another lab runs") {
		t.Errorf("second lab: %v %s", err, out)
	}

	// Operators' commands work against its nodes, through either of them.
	if out, err := l.Msgw("node", "weight", "msgw1", "3", "--dir", f.Nodes[1].Dir); err != nil {
		t.Errorf("weight: %v %s", err, out)
	}
	out, err := l.Msgw("dns", "--dir", f.Nodes[0].Dir)
	if err != nil || !strings.Contains(out, "75.0 %") {
		t.Errorf("dns: %v %s", err, out)
	}

	// kill, start and stop speak to the lab; lab.json follows.
	unknown, known := "mbx-00000000000000000000000000000000@"+f.Zone, f.Mailboxes[0].Address
	if got := rcpt(t, f.Nodes[1].SMTP, unknown); got != 550 {
		t.Errorf("unknown recipient, with a quorum: %d", got)
	}
	if out, err := l.Msgw("lab", "kill", "msgw1", "--dir", dir); err != nil {
		t.Fatalf("kill: %v %s", err, out)
	}
	// Without a quorum a mailbox may have been made at the other site: not 550. What
	// is known is accepted.
	labtest.Within(t, 20*time.Second, "msgw2 knows that it may not be up to date", func() error {
		if got := rcpt(t, f.Nodes[1].SMTP, unknown); got != 451 {
			return fmt.Errorf("unknown recipient: %d", got)
		}
		return nil
	})
	if got := rcpt(t, f.Nodes[1].SMTP, known); got != 250 {
		t.Errorf("known recipient, without a quorum: %d", got)
	}
	if alive(f.Nodes[0].PID) || l.File().Nodes[0].PID != 0 {
		t.Error("msgw1 still runs")
	}
	if out, err := l.Msgw("lab", "kill", "msgw1", "--dir", dir); exitCodeOf(err) != 2 || !strings.Contains(out, "does not run") {
		t.Errorf("killed twice: %v %s", err, out)
	}
	if out, err := l.Msgw("lab", "start", "msgw1", "--dir", dir); err != nil {
		t.Fatalf("start: %v %s", err, out)
	}
	if n := l.File().Nodes[0]; !alive(n.PID) || n.PID == f.Nodes[0].PID {
		t.Errorf("msgw1 after start: %+v", n)
	}
	if out, err := l.Msgw("lab", "stop", "msgw2", "--dir", dir); err != nil {
		t.Fatalf("stop: %v %s", err, out)
	}
	// A node started from argv alone, by somebody else.
	n2 := f.Nodes[1]
	own := exec.Command(n2.Argv[0], n2.Argv[1:]...)
	own.Dir, own.Env = "/", []string{}
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, 20*time.Second, "msgw2 answers", func() error {
		_, err := l.Msgw("status", "--json", "--dir", n2.Dir)
		if exitCodeOf(err) == 2 {
			return err
		}
		return nil
	})
	own.Process.Signal(syscall.SIGTERM)
	if err := own.Wait(); err != nil {
		t.Errorf("a node that is told to stop: %v", err)
	}

	// A node that was killed from outside is not restarted; the lab stays up.
	pid := l.File().Nodes[0].PID
	syscall.Kill(pid, syscall.SIGKILL)
	labtest.Within(t, 10*time.Second, "lab.json says so", func() error {
		if p := l.File().Nodes[0].PID; p != 0 {
			return fmt.Errorf("pid %d", p)
		}
		return nil
	})
	time.Sleep(500 * time.Millisecond)
	if l.File().Nodes[0].PID != 0 || !alive(l.PID()) {
		t.Error("restarted, or the lab is gone")
	}

	// A node whose state directory is gone refuses to start, and makes no cluster.
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(n2.Dir, moved); err != nil {
		t.Fatal(err)
	}
	cmdOut, err := exec.Command(n2.Argv[0], n2.Argv[1:]...).CombinedOutput()
	if exitCodeOf(err) != 2 || !bytes.Contains(cmdOut, []byte("hint: ")) {
		t.Errorf("wiped node: %v %s", err, cmdOut)
	}
	if _, err := os.Stat(filepath.Join(n2.Dir, "config.json")); err == nil {
		t.Error("a configuration was made")
	}
	os.RemoveAll(n2.Dir)
	if err := os.Rename(moved, n2.Dir); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Msgw("lab", "start", "msgw1", "--dir", dir); err != nil {
		t.Fatalf("start: %v %s", err, out)
	}
	if out, err := l.Msgw("lab", "start", "msgw2", "--dir", dir); err != nil {
		t.Fatalf("start: %v %s", err, out)
	}

	// Killed itself, its nodes die with it, and it works again at once.
	f = l.File()
	l.End(syscall.SIGKILL)
	gone(t, f)
	l = labtest.Start(t, program, dir, "--net", netw, "--witness")
	f = l.File()
	if len(f.Nodes) != 3 || f.Nodes[2].Role != "witness" || f.Nodes[2].SMTP != "" || len(f.Mailboxes) != 3 {
		t.Errorf("resumed with a witness: %+v", f)
	}
	out, err = l.Msgw("node", "list", "--dir", f.Nodes[0].Dir)
	if err != nil || !strings.Contains(out, "witness") {
		t.Errorf("node list: %v %s", err, out)
	}

	// A clean end leaves the directory, and no process.
	if out, err := l.End(syscall.SIGTERM); err != nil {
		t.Errorf("lab: %v\n%s", err, out)
	}
	gone(t, f)
	if _, err := os.Stat(filepath.Join(dir, "lab.json")); err != nil {
		t.Error(err)
	}
}

// rcpt returns the reply code to a recipient.
func rcpt(t *testing.T, addr, to string) int {
	t.Helper()
	c, err := textproto.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	code := 0
	for _, line := range []string{"", "EHLO test.example.net", "MAIL FROM:<>", "RCPT TO:<" + to + ">"} {
		if line != "" {
			if err := c.PrintfLine("%s", line); err != nil {
				t.Fatal(err)
			}
		}
		if code, _, err = c.ReadResponse(0); err != nil && code == 0 {
			t.Fatal(err)
		}
	}
	return code
}

func exitCodeOf(err error) int {
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return ee.ExitCode()
	}
	return 0
}

// TestDemo plays the story of the lab and expects it to come true.
func TestDemo(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "lab", "--demo", "--net", loopback(), "--messages", "200", "--witness")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if last := lines[len(lines)-1]; err != nil || !strings.HasPrefix(last, "sent 200, acknowledged 200, fetched 200, lost 0, duplicates ") || !strings.HasSuffix(last, ", corrupted 0") {
		t.Errorf("%v\n%s", err, out)
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
