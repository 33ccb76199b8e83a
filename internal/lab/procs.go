package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// procs are the processes of a lab. They are started by one thread that lives as
// long as the lab, and the kernel kills them when it ends (prctl(2),
// PR_SET_PDEATHSIG counts the thread, not the process).
type procs struct {
	starts  chan func()
	changed chan struct{}

	pmu     sync.Mutex
	running map[string]*proc
	dead    map[string]string // how a node ended that nobody stopped
}

type proc struct {
	cmd     *exec.Cmd
	done    chan struct{}
	wanted  bool // that it ends
	started time.Time
}

func (p *procs) startThread() {
	p.starts, p.changed = make(chan func()), make(chan struct{}, 1)
	p.running, p.dead = map[string]*proc{}, map[string]string{}
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		for f := range p.starts {
			f()
		}
	}()
}

// row finds a node of the lab.
func (l *Lab) row(name string) (NodeRow, error) {
	for _, n := range l.file.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return NodeRow{}, fmt.Errorf("no node is named %s", name)
}

// StartNode starts a node that does not run.
func (l *Lab) StartNode(name string) error {
	n, err := l.row(name)
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(filepath.Join(l.opt.Dir, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(n.Argv[0], n.Argv[1:]...)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// A process group of its own: Ctrl-C is for the lab, which stops its nodes.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}

	l.pmu.Lock()
	defer l.pmu.Unlock()
	if l.running[name] != nil {
		return fmt.Errorf("%s runs already", name)
	}
	started := make(chan error)
	l.starts <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	p := &proc{cmd: cmd, done: make(chan struct{}), started: time.Now()}
	l.running[name] = p
	delete(l.dead, name)
	go l.reap(name, p)
	return nil
}

// reap waits for the end of a process.
func (l *Lab) reap(name string, p *proc) {
	err := p.cmd.Wait()
	l.pmu.Lock()
	delete(l.running, name)
	if !p.wanted {
		l.dead[name] = "exit code 0"
		if err != nil {
			l.dead[name] = err.Error()
		}
		if line := l.lastLine(name); line != "" {
			l.dead[name] += ": " + line
		}
		l.progress("")
		fmt.Fprintf(l.opt.Out, "%s ended: %s\n", name, l.dead[name])
	}
	l.pmu.Unlock()
	close(p.done)
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// lastLine returns the last thing a node said.
func (l *Lab) lastLine(name string) string {
	b, err := os.ReadFile(filepath.Join(l.opt.Dir, name+".log"))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, line := range lines[max(0, len(lines)-3):] {
		if strings.HasPrefix(line, "msgw:") {
			return line
		}
	}
	return lines[len(lines)-1]
}

// ended names a node that ended by itself.
func (l *Lab) ended() (name, why string) {
	l.pmu.Lock()
	defer l.pmu.Unlock()
	for name, why := range l.dead {
		return name, why
	}
	return "", ""
}

func (l *Lab) pid(name string) int {
	l.pmu.Lock()
	defer l.pmu.Unlock()
	if p := l.running[name]; p != nil {
		return p.cmd.Process.Pid
	}
	return 0
}

// stopTime is how long a node may take to end by itself.
const stopTime = 30 * time.Second

// StopNode ends a node as systemd would.
func (l *Lab) StopNode(name string) error { return l.end(name, syscall.SIGTERM) }

// KillNode ends a node as a power cut of the process would.
func (l *Lab) KillNode(name string) error { return l.end(name, syscall.SIGKILL) }

func (l *Lab) end(name string, sig syscall.Signal) error {
	if _, err := l.row(name); err != nil {
		return err
	}
	l.pmu.Lock()
	p := l.running[name]
	if p == nil {
		l.pmu.Unlock()
		return fmt.Errorf("%s does not run", name)
	}
	p.wanted = true
	err := p.cmd.Process.Signal(sig)
	l.pmu.Unlock()
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTime):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end within %v and was killed", name, stopTime)
	}
}

// stopAll ends every node, and the thread that started them.
func (l *Lab) stopAll() error {
	if l.starts == nil {
		return nil
	}
	l.pmu.Lock()
	var names []string
	for name := range l.running {
		names = append(names, name)
	}
	l.pmu.Unlock()
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = l.StopNode(name) })
	}
	wg.Wait()
	close(l.starts)
	return errors.Join(errs...)
}
