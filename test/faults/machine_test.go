//go:build faults

package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/node"
	"msgw/test/labtest"
)

// network is a bridge; the test itself, with the senders and the archive, is behind one
// end of it.
type network struct {
	n int // of the story
	t *testing.T
}

var networks atomic.Int32

func newNetwork(t *testing.T) *network {
	t.Helper()
	w := &network{int(networks.Add(1)), t}
	w.must("ip", "link", "add", w.bridge(), "type", "bridge")
	w.must("ip", "address", "add", w.addr(254)+"/24", "dev", w.bridge())
	w.must("ip", "link", "set", w.bridge(), "up")
	return w
}

func (w *network) bridge() string       { return fmt.Sprintf("b%d", w.n) }
func (w *network) addr(host int) string { return fmt.Sprintf("10.77.%d.%d", w.n, host) }
func (w *network) must(c string, a ...string) {
	w.t.Helper()
	if err := run(c, a...); err != nil {
		w.t.Fatal(err)
	}
}

// starts is the thread that starts all processes: they end with it (prctl(2),
// PR_SET_PDEATHSIG counts the thread, not the process).
var starts = sync.OnceValue(func() chan func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
})

// machine is a network namespace with a node in it.
type machine struct {
	t           *testing.T
	name        string // of the node
	netns       string
	addr        string
	dir         string // the node's state
	config, log string

	mu   sync.Mutex
	cmd  *exec.Cmd // nil while it does not run
	done chan struct{}
}

// newMachine plugs a machine into the bridge. public is added to the configuration.
func (w *network) newMachine(name string, host int, public string) *machine {
	w.t.Helper()
	dir := w.t.TempDir()
	m := &machine{t: w.t, name: name, netns: fmt.Sprintf("%s-%d", name, w.n), addr: w.addr(host), dir: filepath.Join(dir, "state"),
		config: filepath.Join(dir, "msgw.toml"), log: filepath.Join(dir, "log")}
	veth := fmt.Sprintf("v%d-%d", w.n, host)
	w.must("ip", "netns", "add", m.netns)
	w.must("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", m.netns)
	w.must("ip", "link", "set", veth, "master", w.bridge(), "up")
	w.must("ip", "-n", m.netns, "address", "add", m.addr+"/24", "dev", "eth0")
	w.must("ip", "-n", m.netns, "link", "set", "lo", "up")
	w.must("ip", "-n", m.netns, "link", "set", "eth0", "up")
	text := fmt.Sprintf("name = %q\nstate = %q\n[listen]\npeer = \"%s:8451\"\nmetrics = \"%s:8452\"\n[public]\nipv4 = [%q]\n%s", name, m.dir, m.addr, m.addr, m.addr, public)
	if err := os.WriteFile(m.config, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		m.signal(syscall.SIGCONT)
		m.end(syscall.SIGKILL)
		if _, err := os.Stat(m.log); err == nil {
			labtest.CheckLog(w.t, m.log)
		}
	})
	return m
}

// command is msgw on the machine.
func (m *machine) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + m.netns, program()}, args...)...)
}

// msgw runs an operator's command to its end.
func (m *machine) msgw(args ...string) (string, error) {
	var out, errs strings.Builder
	cmd := m.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: msgw %s: %w\n%s%s", m.name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

func (m *machine) must(args ...string) string {
	m.t.Helper()
	out, err := m.msgw(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *machine) admin() *admin.Client { return admin.NewClient(m.dir, node.SocketFile) }

func (m *machine) status() (admin.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return m.admin().Status(ctx)
}

func (m *machine) mustStatus() admin.Status {
	m.t.Helper()
	s, err := m.status()
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// start runs the node; it need not answer yet.
func (m *machine) start() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		m.t.Fatalf("%s runs already", m.name)
	}
	log, err := os.OpenFile(m.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := m.command("serve", "--config", m.config)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", []string{}, log, log
	cmd.Path, err = exec.LookPath("nsenter")
	if err != nil {
		m.t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	starts() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		m.t.Fatal(err)
	}
	done := make(chan struct{})
	m.cmd, m.done = cmd, done
	go func() {
		cmd.Wait() // how it ended is seen where it matters
		close(done)
	}()
}

// ready waits until the node answers its operator.
func (m *machine) ready() {
	m.t.Helper()
	labtest.Within(m.t, 40*time.Second, m.name+" answers", func() error {
		_, err := m.status()
		return err
	})
}

func (m *machine) running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cmd != nil
}

// signal sends a signal to the node, if it runs.
func (m *machine) signal(s syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		m.cmd.Process.Signal(s)
	}
}

// end sends a signal that ends the node, and waits.
func (m *machine) end(s syscall.Signal) {
	m.signal(s)
	m.mu.Lock()
	done := m.done
	m.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(40 * time.Second):
		m.t.Errorf("%s did not end within 40 s after %v", m.name, s)
		m.signal(syscall.SIGKILL)
		<-done
	}
	m.mu.Lock()
	m.cmd, m.done = nil, nil
	m.mu.Unlock()
}

func (m *machine) kill() { m.end(syscall.SIGKILL) }

// A cut is what a machine does with packets of another one that come in.
const (
	drop   = "drop"
	reject = "reject"
)

// cut does it until healed. It replaces what was cut before.
func (m *machine) cut(from *machine, how string) {
	m.t.Helper()
	rules := "  ip saddr " + from.addr + " drop\n"
	if how == reject {
		// The other side's resets must pass, or it would never hear of its own.
		rules = strings.ReplaceAll("  ip saddr A tcp flags & rst == rst accept\n  ip saddr A meta l4proto tcp reject with tcp reset\n  ip saddr A reject\n", "A", from.addr)
	}
	m.rules("table inet faults {\n chain in {\n  type filter hook input priority 0;\n" + rules + " }\n}\n")
}

func (m *machine) heal() { m.t.Helper(); m.rules("") }

func (m *machine) rules(text string) {
	m.t.Helper()
	if err := feed("flush ruleset\n"+text, "nsenter", "--net=/run/netns/"+m.netns, "nft", "-f", "-"); err != nil {
		m.t.Fatal(err)
	}
}
