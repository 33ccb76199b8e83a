//go:build power

package power

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab"
)

// hardware is a machine that can be switched on again and again.
type hardware struct {
	dir    string
	addr   string // of this computer, where its ports are reached
	disk   string // raw
	initrd string
	file   lab.File
}

// machine is hardware that is on.
type machine struct {
	hardware *hardware
	disk     *disk
	server   *server
	started  time.Time
	at       []map[string]string // by node and name of the service: where it is reached
	cmd      *exec.Cmd
	console  console
	off      chan struct{} // closed when QEMU has ended
	ended    error         // how, read after off
}

// console keeps the end of what a machine says.
type console struct {
	mu   sync.Mutex
	text []byte
}

const consoleKept = 64 << 10

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	if n := len(c.text); n > 2*consoleKept {
		c.text = bytes.Clone(c.text[n-consoleKept:])
	}
	return len(p), nil
}

func (c *console) tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text[max(0, len(c.text)-n):])
}

// switchOn starts the machine. TCG is taken even where /dev/kvm is: one that cannot run
// this kernel looks the same.
func (h *hardware) switchOn(t *testing.T) *machine {
	t.Helper()
	m := &machine{hardware: h, started: time.Now(), off: make(chan struct{})}
	var err error
	if m.disk, err = openDisk(h.disk); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(h.dir, "disk.sock")
	os.Remove(socket)
	if m.server, err = m.disk.serve(socket); err != nil {
		t.Fatal(err)
	}
	netdev := "user,id=net,restrict=on"
	for i, n := range h.file.Nodes {
		at := map[string]string{}
		for name, s := range services(i, n) {
			at[name] = h.addr + ":" + s.port
			netdev += fmt.Sprintf(",hostfwd=tcp:%s-:%s", at[name], s.port)
		}
		m.at = append(m.at, at)
	}
	m.cmd = exec.Command("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "2", "-m", "768",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", built.kernel, "-initrd", h.initrd,
		"-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off random.trust_cpu=on",
		"-drive", "if=none,id=disk,format=raw,cache=none,file=nbd+unix:///?socket="+socket, "-device", fmt.Sprintf("virtio-blk-pci,drive=disk,write-cache=on,logical_block_size=%d,physical_block_size=%[1]d", sector),
		"-netdev", netdev, "-device", "virtio-net-pci,netdev=net,romfile=")
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.cmd.Stdout, m.cmd.Stderr = &m.console, &m.console
	running := make(chan error)
	go func() {
		runtime.LockOSThread() // QEMU is killed when the thread that started it ends
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		running <- err
		if err == nil {
			m.ended = m.cmd.Wait()
			close(m.off)
		}
	}()
	if err := <-running; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.powerOff(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// powerOff cuts the power and returns when nothing runs any more.
func (m *machine) powerOff() error {
	m.disk.cut()
	m.cmd.Process.Kill()
	<-m.off
	return m.server.stop()
}

// lose decides what of the disk's cache is left; the power is off.
func (m *machine) lose(t *testing.T, rng *rand.Rand) string {
	t.Helper()
	if err := m.powerOff(); err != nil {
		t.Fatal(err)
	}
	what, err := m.disk.lose(rng)
	if err != nil {
		t.Fatal(err)
	}
	return what
}

// greeted returns when all nodes greet.
func (m *machine) greeted(t *testing.T) {
	t.Helper()
	for i, n := range m.hardware.file.Nodes {
		m.await(t, 2*time.Minute, n.Name+" greets", func() error { return m.greets(i) })
	}
}

func (m *machine) greets(node int) error {
	c, err := net.DialTimeout("tcp", m.at[node]["smtp"], time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second)) // while it starts, nothing comes
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "220 ") {
		err = fmt.Errorf("greeting %q", line)
	}
	return err
}

// await waits until f returns nil, while the machine is on.
func (m *machine) await(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-m.off:
			t.Fatalf("the machine is off: %v\n%s", m.ended, m.console.tail(4000))
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s: %v\n%s", d, what, err, m.console.tail(4000))
		}
	}
}

// status is what a node says of itself.
func (m *machine) status(ctx context.Context, node int) (admin.Status, error) {
	var s admin.Status
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.at[node]["admin"]+"/v1/status", nil)
	if err != nil {
		return s, err
	}
	res, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return s, fmt.Errorf("status of %s: %s", m.hardware.file.Nodes[node].Name, res.Status)
	}
	return s, json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&s)
}
