// Package labtest builds msgw and runs it as its users do, for tests: real processes
// whose logs are searched for what a node must never say.
package labtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"msgw/internal/lab"
)

// Build builds msgw into a directory, with the race detector if this program has it,
// and returns its path.
func Build(dir string) (string, error) {
	path := filepath.Join(dir, "msgw")
	args := []string{"build", "-o", path}
	if raceDetector {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "msgw/cmd/msgw")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build msgw: %w\n%s", err, out)
	}
	return path, nil
}

// Lab is a running `msgw lab`.
type Lab struct {
	Dir string

	t       testing.TB
	program string
	cmd     *exec.Cmd
	out     *bytes.Buffer
}

// Start runs program's lab in dir and returns when it is up. It is killed when the
// test ends; its nodes die with it.
func Start(t testing.TB, program, dir string, args ...string) *Lab {
	t.Helper()
	l := &Lab{Dir: dir, t: t, program: program, out: &bytes.Buffer{}}
	l.cmd = exec.Command(program, append([]string{"lab", "--dir", dir}, args...)...)
	l.cmd.Stdout, l.cmd.Stderr = l.out, l.out
	os.Remove(filepath.Join(dir, "lab.sock"))
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.cmd.Process.Kill()
		l.cmd.Wait()
		logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		for _, path := range logs {
			CheckLog(t, path)
		}
		if bytes.Contains(l.out.Bytes(), []byte("DATA RACE")) {
			t.Errorf("lab:\n%s", l.out)
		}
	})
	Within(t, 60*time.Second, "lab is up", func() error {
		// The socket is there once lab.json is complete.
		_, err := os.Stat(filepath.Join(dir, "lab.sock"))
		return err
	})
	return l
}

// PID is the process of the lab itself.
func (l *Lab) PID() int { return l.cmd.Process.Pid }

// End sends the lab a signal and returns how it ended and what it printed.
func (l *Lab) End(sig os.Signal) (output string, err error) {
	l.t.Helper()
	if err := l.cmd.Process.Signal(sig); err != nil {
		l.t.Fatal(err)
	}
	err = l.cmd.Wait()
	return l.out.String(), err
}

// File returns what lab.json says now.
func (l *Lab) File() lab.File {
	l.t.Helper()
	var f lab.File
	b, err := os.ReadFile(filepath.Join(l.Dir, "lab.json"))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		l.t.Fatal(err)
	}
	return f
}

// Msgw runs the program and returns what it printed.
func (l *Lab) Msgw(args ...string) (string, error) {
	out, err := l.Command(args...).CombinedOutput()
	return string(out), err
}

// Command is the program with arguments, to be run.
func (l *Lab) Command(args ...string) *exec.Cmd { return exec.Command(l.program, args...) }

// CheckLog looks for what a node must never say, and shows the end of its log if the
// test failed.
func CheckLog(t testing.TB, path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"DATA RACE", "panic: ", "fatal error: "} {
		if i := bytes.Index(b, []byte(bad)); i >= 0 {
			t.Errorf("%s:\n%s", path, b[i:min(len(b), i+4000)])
		}
	}
	if t.Failed() {
		t.Logf("end of %s:\n%s", path, b[max(0, len(b)-4000):])
	}
}

// Within fails the test unless f returns nil within d.
func Within(t testing.TB, d time.Duration, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s: %v", d, what, err)
		}
	}
}
