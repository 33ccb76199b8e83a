//go:build image

package image

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hardware is a virtual machine that can be started again and again.
type hardware struct {
	dir   string // of the image
	disk  string // qcow2, on top of the image's
	ports map[string]string
}

// newHardware makes a machine with an empty disk of 3 GiB on top of the image.
func newHardware(t *testing.T, image string) *hardware {
	t.Helper()
	h := &hardware{dir: image, disk: filepath.Join(t.TempDir(), "disk.qcow2"), ports: map[string]string{}}
	base, err := filepath.Abs(filepath.Join(image, "msgw.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", h.disk, "3G")
	for _, guest := range []string{"tcp:25", "tcp:110", "tcp:995", "tcp:8451", "udp:53"} {
		h.ports[guest] = freePort(t, guest[:3])
	}
	return h
}

// at is where a port of the machine is reached, as "tcp:25".
func (h *hardware) at(port string) string { return "127.0.0.1:" + h.ports[port] }

func freePort(t *testing.T, network string) string {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, port, _ := net.SplitHostPort(c.LocalAddr().String())
		return port
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// machine is hardware that is switched on.
type machine struct {
	*console
	hardware *hardware
	started  time.Time
	cmd      *exec.Cmd
	ended    chan error
	qmp      string
}

// Ways to start.
func (h *hardware) direct(t *testing.T) []string {
	return []string{"-kernel", filepath.Join(h.dir, "vmlinuz"), "-initrd", filepath.Join(h.dir, "initrd.img"),
		"-append", "msgw.root=msgw-root-a console=ttyS0 quiet panic=10"}
}

func (h *hardware) uefi(t *testing.T) []string {
	vars := filepath.Join(t.TempDir(), "vars.fd")
	b, err := os.ReadFile(firmwareVars)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vars, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + firmware, "-drive", "if=pflash,format=raw,unit=1,file=" + vars}
}

func (h *hardware) bios(*testing.T) []string { return nil }

// start switches the machine on, and off at the end of the test. TCG is taken even
// where /dev/kvm is: one that cannot run this kernel looks the same.
func (h *hardware) start(t *testing.T, how func(*testing.T) []string, more ...string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "msgw-vm-") // short: a socket's path has room for 107 octets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	serial, qmp := filepath.Join(dir, "serial"), filepath.Join(dir, "qmp")
	netdev := "user,id=net"
	for guest, port := range h.ports {
		netdev += fmt.Sprintf(",hostfwd=%s:127.0.0.1:%s-:%s", guest[:3], port, guest[4:])
	}
	args := append([]string{"-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-display", "none", "-no-reboot", "-serial", "unix:" + serial + ",server=on", "-qmp", "unix:" + qmp + ",server=on,wait=off",
		"-drive", "if=virtio,format=qcow2,file=" + h.disk, "-netdev", netdev, "-device", "virtio-net-pci,netdev=net"}, how(t)...)
	m := &machine{hardware: h, started: time.Now(), qmp: qmp, ended: make(chan error, 1)}
	m.cmd = exec.Command("qemu-system-x86_64", append(args, more...)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complaints strings.Builder
	m.cmd.Stderr = &complaints
	running := make(chan error)
	go func() {
		runtime.LockOSThread() // qemu is killed when the thread that started it ends
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		running <- err
		if err == nil {
			m.ended <- m.cmd.Wait()
		}
	}()
	if err := <-running; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.cmd.Process.Kill()
		<-m.ended
		m.console.close()
		if t.Failed() {
			t.Logf("qemu said: %s\nend of the console:\n%s", complaints.String(), m.console.tail(6000))
		}
	})
	// qemu starts the machine when somebody listens at the console.
	m.console = openConsole(t, serial)
	return m
}

// off waits until the machine has switched itself off.
func (m *machine) off(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case err := <-m.ended:
		m.ended <- err
		if err != nil {
			t.Fatalf("qemu: %v", err)
		}
	case <-time.After(d):
		t.Fatalf("the machine is not off after %v", d)
	}
}

// powerButton presses it.
func (m *machine) powerButton(t *testing.T) {
	t.Helper()
	c, err := net.Dial("unix", m.qmp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	for _, request := range []string{"", `{"execute":"qmp_capabilities"}`, `{"execute":"system_powerdown"}`} {
		if request != "" {
			if _, err := fmt.Fprintln(c, request); err != nil {
				t.Fatal(err)
			}
		}
		for answered := false; !answered; {
			line, err := r.ReadBytes('\n')
			var answer map[string]any
			if err = errors.Join(err, json.Unmarshal(line, &answer)); err != nil || answer["error"] != nil {
				t.Fatalf("qmp: %s %v", line, err)
			}
			_, event := answer["event"]
			answered = !event
		}
	}
}

// greeted waits for SMTP to greet, and says how long that took.
func (m *machine) greeted(t *testing.T, d time.Duration) {
	t.Helper()
	within(t, d, "SMTP greets", func() error {
		select {
		case err := <-m.ended:
			m.ended <- err
			t.Fatalf("the machine is off: %v", err)
		default:
		}
		c, err := net.DialTimeout("tcp", m.hardware.at("tcp:25"), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "220 msgw1.msgw.example.com ") {
			err = fmt.Errorf("greeting %q", line)
		}
		return err
	})
	t.Logf("SMTP greets %.1f s after switching on", time.Since(m.started).Seconds())
}

func within(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(100 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s: %v", d, what, err)
		}
	}
}

// command runs a program that has to succeed, and returns its output.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
