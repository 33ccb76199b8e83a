//go:build peers

package archives

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"msgw/internal/lab"
)

// profile is what a client is told of one maildrop at one site.
type profile struct {
	host           string
	port           int // 110: with STLS, nothing without; any other: TLS from the start
	user, password string
	ca             string // path in the root of the certificates it trusts
	keep           bool   // messages stay at the server
	timeout        int    // seconds without an answer after which the client gives up
	name           string // of the profile
	mail           string // directory of the root that messages are written to, a file each
}

func (p profile) stls() bool { return p.port == 110 }

// client is a program, set up as the person would who uses it to fetch an archive's mail.
type client struct {
	name string
	// command writes a configuration with these profiles and returns the command that
	// fetches once. dir keeps what the client wants to remember.
	command func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd
	noMail  int  // exit code that says that all went well and there was no mail
	noSTLS  bool // it cannot do STLS
	anyName bool // it does not care for the name in a certificate
	// sent makes of a file that the client wrote what was sent, as far as that can be
	// known from the file.
	sent func(written []byte) []byte
	// alike, if set, is applied to both before they are compared: what the client's
	// documented rewriting cannot be undone for.
	alike func([]byte) []byte
	// changed are the messages that differ all the same, and how.
	changed map[string]difference
	// harmful are messages that keep the client from the ones behind them, and what it
	// says then.
	harmful map[string]string
	// What it says if it does not trust the CA, or the certificate is another host's,
	// if the password is wrong, and if another session has the maildrop open.
	distrusts, misnamed, rejected, inUse string
	// inexpressible are the passwords that its configuration cannot hold, and why.
	inexpressible map[string]string
	// failed, if set, says whether its output tells of a failure that its exit code hides.
	failed func(out string) bool
}

// clients are all of them.
func clients() []*client { return []*client{fetchmail, getmail, mpop, curl, pythonPoplib, fdm} }

const (
	archiveUser = "archive" // who runs the clients
	archiveID   = 20000
	home        = "/srv/archive"
)

// deliver is the shell command that most clients deliver a message with. It changes
// nothing: its input goes to a new file of a directory.
func deliver(dir string) string { return "set -C; exec cat >" + dir + "/$$" }

// installClients gives the root the user who runs the clients, and what they need.
func installClients(t testing.TB) {
	passwd, err := os.ReadFile(root.Path("/etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	root.Write(t, "/etc/passwd", string(passwd)+fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", archiveUser, archiveID, archiveID, home), 0o644)
	root.Write(t, getmailDeliver, getmailDeliverScript, 0o755)
	root.Write(t, curlProgram, curlScript, 0o755)
	root.Write(t, poplibProgram, poplibScript, 0o755)
	directory(t, home)
}

// directory makes a directory of the root that the clients may write to.
func directory(t testing.TB, dir string) {
	t.Helper()
	err := os.MkdirAll(root.Path(dir), 0o755)
	for at := dir; err == nil && strings.HasPrefix(at, home); at = filepath.Dir(at) {
		err = os.Chown(root.Path(at), archiveID, archiveID)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// configure writes a file that only the clients' user may read.
func configure(t testing.TB, file, text string) {
	t.Helper()
	root.Write(t, file, text, 0o600)
	if err := os.Chown(root.Path(file), archiveID, archiveID); err != nil {
		t.Fatal(err)
	}
}

// as returns the command to run a program of the root as the clients' user. When ctx
// ends, it and what it started are killed with SIGKILL.
func as(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := root.Command(ctx, program, args...)
	cmd.Env = append(cmd.Env, "HOME="+home, "USER="+archiveUser, "LOGNAME="+archiveUser)
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: archiveID, Gid: archiveID}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// setup is a client with a directory of its own, on behalf of one or more profiles.
type setup struct {
	*client
	dir      string
	profiles []profile
}

var setups atomic.Int64

// new makes a setup without memory and without profiles.
func (c *client) new(t testing.TB) *setup {
	t.Helper()
	u := &setup{client: c, dir: fmt.Sprintf("%s/%s-%d", home, c.name, setups.Add(1))}
	directory(t, u.dir)
	t.Cleanup(func() { os.RemoveAll(root.Path(u.dir)) })
	return u
}

// add adds a profile for a mailbox at a site, with TLS from the start, and returns
// it to be changed.
func (u *setup) add(n lab.NodeRow, b lab.Mailbox) *profile {
	name := fmt.Sprintf("%s%d", n.Name, len(u.profiles))
	u.profiles = append(u.profiles, profile{host: n.Host, port: 995, user: b.ID, password: b.Password, ca: goodCA, timeout: 60, name: name})
	return &u.profiles[len(u.profiles)-1]
}

// start begins a run that is killed with ctx. What the run writes goes to a new
// directory, so that every run is seen by itself.
func (u *setup) start(ctx context.Context, t testing.TB) (cmd *exec.Cmd, out *bytes.Buffer) {
	t.Helper()
	for i := range u.profiles {
		p := &u.profiles[i]
		p.mail = fmt.Sprintf("%s/%s-mail-%d", u.dir, p.name, setups.Add(1))
		directory(t, p.mail)
	}
	cmd, out = u.command(ctx, t, u.dir, u.profiles...), &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", u.name, err)
	}
	return cmd, out
}

// run runs the client once and returns what it said, and an error if it did.
func (u *setup) run(t testing.TB) (out string, err error) {
	t.Helper()
	cmd, buf := u.start(t.Context(), t)
	err = cmd.Wait()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s said:\n%s", u.name, tail(buf.String()))
		}
	})
	var exit *exec.ExitError
	if u.noMail != 0 && errors.As(err, &exit) && exit.ExitCode() == u.noMail {
		err = nil
	}
	if err == nil && u.failed != nil && u.failed(buf.String()) {
		err = errors.New("failed, by what it says")
	}
	return buf.String(), err
}

// fetch is a run that must go well. It returns what the client wrote.
func (u *setup) fetch(t testing.TB) [][]byte {
	t.Helper()
	if _, err := u.run(t); err != nil {
		t.Fatalf("%s: %v", u.name, err)
	}
	return u.written(t)
}

// written returns what the last run wrote, in order.
func (u *setup) written(t testing.TB) [][]byte {
	t.Helper()
	var all [][]byte
	for _, p := range u.profiles {
		entries, err := os.ReadDir(root.Path(p.mail))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(root.Path(p.mail), e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b)
		}
	}
	return all
}

func tail(s string) string { return s[max(0, len(s)-6000):] }
