//go:build faults

// Package faults lets real processes of msgw live through what happens to machines and
// lines: two sites, a witness, senders and an archive, under load, while links are cut,
// processes die or stand still, disks fill up and states are lost or set back. Whatever
// happens, one history must hold over both sites; see ledger.
//
// Each machine is a network namespace behind a bridge. The test binary runs itself again
// in namespaces of its own, which hold all of it: no packet leaves them, and whatever was
// started ends with them. It needs root.
//
// MSGW_FAULT_ROUNDS multiplies how long the stories last, MSGW_SEED repeats one.
package faults

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msgw/test/labtest"
)

const insideEnv = "MSGW_FAULTS_INSIDE" // set in the namespaces: the directory of the built program

// together is how many stories are played at a time: they wait more than they work.
const together = "4"

func TestMain(m *testing.M) {
	flag.Parse()
	var code int
	var err error
	switch {
	case os.Getenv(insideEnv) == "":
		code, err = outside()
	case os.Getpid() == 1:
		code, err = first()
	default:
		chosen := false
		flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
		if !chosen {
			err = flag.Set("test.parallel", together)
		}
		if err == nil {
			code = m.Run()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "1 failed:", err)
		code = 1
	}
	os.Exit(code)
}

func program() string { return filepath.Join(os.Getenv(insideEnv), "msgw") }

// outside builds msgw and runs this program again, inside.
func outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests make network namespaces and need root")
	}
	dir, err := os.MkdirTemp("", "msgw-faults-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if _, err := labtest.Build(dir); err != nil {
		return 1, err
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

// first is the first process of the namespaces: it runs the tests, and ends last.
func first() (code int, err error) {
	if err := enter(); err != nil {
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

// enter makes the namespaces habitable. Nothing of the kernel's settings can be changed
// in them.
func enter() error {
	const readOnly = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", readOnly, ""),
		unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
		unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|readOnly, ""),
		os.MkdirAll("/run/netns", 0o755),
		unix.Mount("netns", "/run/netns", "tmpfs", readOnly, "mode=755"), // for `ip netns`
		run("ip", "link", "set", "lo", "up"))
}

func run(name string, args ...string) error {
	return feed("", name, args...)
}

// feed runs a program with something to read.
func feed(input, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s\n%s", name, strings.Join(args, " "), err, input, bytes.TrimSpace(out))
	}
	return nil
}

// number is what an environment variable says, or a default.
func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	v := os.Getenv(variable)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n == 0 {
		t.Fatalf("%s=%q: expected a number above 0", variable, v)
	}
	return n
}

// rounds multiplies how often something is done.
func rounds(t *testing.T, n int) int { return n * int(number(t, "MSGW_FAULT_ROUNDS", 1)) }

// seed of a random story, printed so that it can be told again.
func seed(t *testing.T) uint64 {
	s := number(t, "MSGW_SEED", uint64(time.Now().UnixNano()))
	t.Logf("MSGW_SEED=%d", s)
	return s
}
