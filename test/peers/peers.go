//go:build peers

// Package peers runs programs that nobody here wrote beside msgw: mail servers,
// archives' POP3 clients, resolvers, a certificate authority.
//
// A suite's test binary runs itself again in namespaces of its own: no packet leaves
// it, standard ports are free in it, and whatever it started ends with it. Debian's
// packages are installed into overlays of this machine's file system, so nothing of
// the machine changes and packages that exclude each other can be used in one run.
// It needs root.
package peers

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msgw/test/labtest"
)

const (
	insideEnv  = "MSGW_PEERS_INSIDE"   // set in the namespaces: the directory of the built programs
	cacheDir   = "/var/tmp/msgw-peers" // installed packages, kept from run to run
	waitDelay  = 5 * time.Second
	resolvConf = "nameserver " + ResolverAddr + "\noptions timeout:2 attempts:2\n"
)

// Suite is what the tests of a package need.
type Suite struct {
	Roots    []*Root           // programs from Debian's packages
	Programs map[string]string // name -> Go program, as path@version
}

// Main is the suite's TestMain: it prepares everything, enters the namespaces and
// runs the tests there. It does not return.
func (s *Suite) Main(m *testing.M) {
	var code int
	var err error
	switch {
	case os.Getenv(insideEnv) == "":
		code, err = s.outside()
	case os.Getpid() == 1:
		code, err = s.first()
	default:
		code = m.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "1 failed:", err)
		code = 1
	}
	os.Exit(code)
}

// Program returns the path of a built program: msgw, or one of Suite.Programs.
func Program(name string) string { return filepath.Join(os.Getenv(insideEnv), name) }

// outside prepares what needs the network and runs this program again, inside.
func (s *Suite) outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests make network namespaces and overlays and need root")
	}
	dir, err := os.MkdirTemp("", "msgw-peers-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if _, err := labtest.Build(dir); err != nil {
		return 1, err
	}
	for name, module := range s.Programs {
		cmd := exec.Command("go", "install", module)
		cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("%s: go install %s: %w\n%s", name, module, err, out)
		}
	}
	for _, r := range s.Roots {
		if err := r.install(); err != nil {
			return 1, err
		}
	}
	// The kernel ends the inner process when the thread that made it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// first is the first process of the namespaces: it runs the tests, and takes in what
// daemons leave behind.
func (s *Suite) first() (code int, err error) {
	if err := s.enter(); err != nil {
		return 1, fmt.Errorf("namespaces: %w", err)
	}
	tests, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 1, err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid == tests.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == tests.Pid:
			return 1, fmt.Errorf("tests: %v", status.Signal())
		}
	}
}

// enter makes the namespaces that this process was started in habitable.
func (s *Suite) enter() error {
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		// Kernel settings are the whole machine's, but for those of the network.
		unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
		unix.Mount("/proc/sys/net", "/proc/sys/net", "", unix.MS_BIND, ""),
		unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		os.MkdirAll("/run/netns", 0o755),
		unix.Mount("netns", "/run/netns", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"), // for `ip netns`
		run("ip", "link", "set", "lo", "up"))
	if err != nil {
		return err
	}
	// Programs of this machine ask the suite's resolver.
	resolv := filepath.Join(os.Getenv(insideEnv), "resolv.conf")
	if err := os.WriteFile(resolv, []byte(resolvConf), 0o644); err != nil {
		return err
	}
	at, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err == nil {
		err = unix.Mount(resolv, at, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("resolv.conf: %w", err)
	}
	for _, r := range s.Roots {
		if err := r.mount(); err != nil {
			return err
		}
	}
	return nil
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Process is a running program of a suite.
type Process struct {
	Log string // path of what it prints

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start runs cmd until the test ends. What it printed is shown if the test fails.
func Start(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Log: filepath.Join(t.TempDir(), name+".log"), cmd: cmd, done: make(chan struct{})}
	log, err := os.Create(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		log.Close()
		t.Fatalf("%s: %v", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		log.Close()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Stop(syscall.SIGTERM)
		if t.Failed() {
			b, _ := os.ReadFile(p.Log)
			t.Logf("end of %s's log:\n%s", name, b[max(0, len(b)-4000):])
		}
	})
	return p
}

// Stop sends a signal and waits; a program that does not end within 10 s is killed.
func (p *Process) Stop(sig syscall.Signal) error {
	p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
	return p.err
}

// Ended returns whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }
