//go:build bench && peers

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"msgw/test/labtest"
)

// flusher is a system that must flush before it acknowledges.
type flusher interface {
	// flushes fails the test if it does not. It returns whether a second site flushed
	// too.
	flushes(t *testing.T) (second bool)
}

func (d *dovecot) flushes(t *testing.T) bool {
	t.Helper()
	traced(t, d.name, d, d.target)
	return false
}

func (p *postfix) flushes(t *testing.T) bool {
	t.Helper()
	traced(t, "postfix", p, p.target)
	return false
}

func (a *appliance) flushes(t *testing.T) bool {
	t.Helper()
	flushed := traced(t, a.name, a, a.target)
	if !flushed[a.sites[0].pid] {
		t.Errorf("%s: the site that the mail was sent to did not flush it before the 250", a.name)
	}
	return len(a.sites) > 1 && flushed[a.sites[1].pid]
}

// tracedMessages is how many messages are sent while strace looks.
const tracedMessages = 5

// traced sends messages, each when the one before has settled, while strace looks. It
// returns which processes flushed a file between each 354 and its 250; somebody must
// have.
func traced(t *testing.T, name string, s system, to target) map[int]bool {
	t.Helper()
	pids, err := s.group().pids()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "strace")
	args := []string{"-f", "-s", "256", "-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg", "-o", out}
	for _, pid := range pids {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "strace", args...)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("strace: %v", err)
	}
	labtest.Within(t, 20*time.Second, "strace is attached", func() error { return attached(pids, cmd.Process.Pid) })
	x := &sender{target: to}
	if err = x.open(false); err == nil {
		msg := letter(4 << 10)
		for i := range tracedMessages {
			if _, err = x.message(msg); err != nil {
				break
			}
			s.settle(t, i+1)
		}
		x.conn.Close()
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	owner := map[int]int{} // of threads
	for _, pid := range pids {
		for _, tid := range threads(pid) {
			owner[tid] = pid
		}
	}
	cmd.Process.Signal(syscall.SIGINT)
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	s.take(t, tracedMessages, 4<<10)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	// Who has not acknowledged as many is no front: a server that another delivers to
	// may be cut short.
	var all map[int]bool
	for pid, k := range judge(string(b), owner) {
		if k.messages != tracedMessages {
			continue
		}
		if len(k.flushed) == 0 {
			t.Errorf("%s: process %d acknowledged without a flush", name, pid)
		}
		if all == nil {
			all = map[int]bool{}
		}
		maps.Copy(all, k.flushed)
	}
	if all == nil {
		t.Errorf("%s: strace saw nobody acknowledge %d messages:\n%s", name, tracedMessages, said.Bytes()[:min(said.Len(), 2000)])
	}
	return all
}

// threads returns the threads that a process has; none if it has ended.
func threads(pid int) (tids []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		if tid, err := strconv.Atoi(task.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

// attached says which thread tracer does not see.
func attached(pids []int, tracer int) error {
	for _, pid := range pids {
		for _, tid := range threads(pid) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
			if err == nil && !strings.Contains(string(b), fmt.Sprintf("TracerPid:\t%d\n", tracer)) {
				return fmt.Errorf("not to %d", tid)
			}
		}
	}
	return nil
}

var (
	goOn    = regexp.MustCompile(`^(?:write|writev|sendto|sendmsg)\(.*(?:"|\\n)354[ -]`)
	good    = regexp.MustCompile(`^(?:write|writev|sendto|sendmsg)\(.*"250[ -]`)
	flushed = regexp.MustCompile(`^(?:(?:fsync|fdatasync)\(\d+|<\.\.\. (?:fsync|fdatasync) resumed>)\)\s+= 0$`)
)

// acknowledgements are what strace saw of a process that takes mail.
type acknowledgements struct {
	messages int
	flushed  map[int]bool // processes that flushed during each of them
	now      map[int]bool // the same since the 354; nil outside of a message
}

// judge reads what strace wrote, by process that answered. A process that strace saw
// begin is its own owner.
func judge(trace string, owner map[int]int) map[int]*acknowledgements {
	all := map[int]*acknowledgements{}
	for line := range strings.Lines(trace) {
		first, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		id, _ := strconv.Atoi(first)
		if pid, ok := owner[id]; ok {
			id = pid
		}
		switch k := all[id]; {
		case goOn.MatchString(call):
			if k == nil {
				k = &acknowledgements{}
				all[id] = k
			}
			k.now = map[int]bool{}
		case flushed.MatchString(call):
			for _, k := range all {
				if k.now != nil {
					k.now[id] = true
				}
			}
		case good.MatchString(call) && k != nil && k.now != nil:
			if k.messages++; k.messages == 1 {
				k.flushed = k.now
			}
			maps.DeleteFunc(k.flushed, func(pid int, _ bool) bool { return !k.now[pid] })
			k.now = nil
		}
	}
	return all
}

// TestJudge checks that a 250 before the flush, or after that of somebody else's
// earlier message, is seen.
func TestJudge(t *testing.T) {
	const goOn, good = "7 write(5, \"250 ok\\r\\n354 go on\\r\\n\", 9) = 9\n", "8 write(5, \"250 2.0.0 stored\\r\\n\", 9) = 9\n"
	const late = "9 <... fdatasync resumed>) = 0\n"
	owner := map[int]int{7: 7, 8: 7, 9: 9}
	for trace, want := range map[string]string{
		goOn + late + good:                            "1 map[9:true]",
		goOn + "8 fsync(3) = 0\n" + late + good:       "1 map[7:true 9:true]",
		goOn + "8 fsync(3) = -1 EIO (error)\n" + good: "1 map[]",
		late + goOn + good + late:                     "1 map[]",
		goOn + late + good + goOn + good:              "2 map[]",
		goOn + "9 fsync(3 <unfinished ...>\n" + good:  "1 map[]",
	} {
		got := judge(trace, owner)[7]
		if s := fmt.Sprint(got.messages, " ", got.flushed); s != want {
			t.Errorf("%s judged as %s instead of %s", trace, s, want)
		}
	}
}
