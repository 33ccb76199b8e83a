//go:build bench && peers

package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// group is a control group of version 2: it counts the processor time of everything
// that was started in it, ended processes included.
type group struct{ dir string }

// newGroup makes a group until the test ends; what is left in it then is killed.
func newGroup(t *testing.T, name string) *group {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	root := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			root = f[1]
		}
	}
	if root == "" {
		t.Fatal("no cgroup2 is mounted: processor time cannot be counted")
	}
	dir, err := os.MkdirTemp(root, "msgw-bench-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	g := &group{dir}
	t.Cleanup(func() {
		os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := os.Remove(dir)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Errorf("%s: %v", dir, err)
				return
			}
		}
	})
	return g
}

// adopt makes cmd start in the group. The returned function is called after it did.
func (g *group) adopt(t *testing.T, cmd *exec.Cmd) (started func()) {
	t.Helper()
	f, err := os.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
	return func() { f.Close() }
}

// cpu returns the processor time spent so far.
func (g *group) cpu(t *testing.T) time.Duration {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, "cpu.stat"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return time.Duration(n) * time.Microsecond
		}
	}
	t.Fatalf("%s/cpu.stat: no usage", g.dir)
	return 0
}

// pids returns the processes that live in the group.
func (g *group) pids() ([]int, error) {
	b, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, s := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(s)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// rss returns the resident octets of all processes. What several of them share is
// counted for each.
func (g *group) rss() int64 {
	pids, err := g.pids()
	if err != nil {
		return 0
	}
	total := int64(0)
	for _, pid := range pids {
		var size, resident int64
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue // it has ended
		}
		if _, err := fmt.Sscan(string(b), &size, &resident); err == nil {
			total += resident * int64(os.Getpagesize())
		}
	}
	return total
}

// watch looks at the resident octets four times a second until stop, which returns
// the most that was seen.
func (g *group) watch() (stop func() int64) {
	done := make(chan struct{})
	peak := g.rss()
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			peak = max(peak, g.rss())
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	return func() int64 {
		close(done)
		wg.Wait()
		return peak
	}
}

// highWater returns the most resident octets that a process ever had.
func highWater(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(s)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}
