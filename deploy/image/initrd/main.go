// Command init is the first process of the image. It loads the drivers for disks,
// opens the root partition under dm-verity, puts /etc on an overlay in memory, checks and mounts
// the data partition on /var, and becomes systemd. What the root partition has to hash
// to stands in the initrd itself; nothing is asked of the disk before it is checked.
//
// On the kernel command line it reads msgw.root, the GPT name of the root partition.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// diskWait bounds how long a partition is waited for: slow controllers take seconds.
const diskWait = 30 * time.Second

// dataPartition is the GPT name of the partition for /var.
const dataPartition = "msgw-data"

func main() {
	err := start()
	fmt.Fprintf(os.Stderr, "msgw init: cannot start: %v; trying again in 10 s\n", err)
	time.Sleep(10 * time.Second)
	// The reboot fails only if this is not the first process; the kernel panics then.
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// start returns only if it failed.
func start() error {
	for _, m := range []mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	name := parameter(string(b), "msgw.root")
	if name == "" {
		return errors.New("the kernel command line has no msgw.root")
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	dev, err := partition(name)
	if err != nil {
		return err
	}
	if b, err = os.ReadFile("/verity"); err != nil {
		return err
	}
	tree, err := parseVerity(string(b))
	if err != nil {
		return err
	}
	root, err := tree.open(dev)
	if err != nil {
		return err
	}
	data, err := partition(dataPartition)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/run/etc/upper", "/run/etc/work"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, m := range []mount{
		{root, "/sysroot", "erofs", unix.MS_RDONLY | unix.MS_NODEV, ""},
		{"overlay", "/sysroot/etc", "overlay", unix.MS_NOSUID | unix.MS_NODEV, "lowerdir=/sysroot/etc,upperdir=/run/etc/upper,workdir=/run/etc/work"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	// It may still be mounted if that failed: the mount says more.
	if err := check(data); err != nil {
		fmt.Fprintf(os.Stderr, "msgw init: file system of /var: %v\n", err)
	}
	for _, m := range []mount{
		// A file system that is damaged stops being written to: msgw says so then.
		{data, "/sysroot/var", "ext4", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "errors=remount-ro"},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := machineID("/sysroot/var/lib/machine-id", "/sysroot/etc/machine-id"); err != nil {
		return err
	}
	return become("/sysroot", "/usr/lib/systemd/systemd")
}

// check repairs the file system on dev as far as that is safe without asking: a power cut
// that tore the last block of its journal leaves one that the kernel does not mount.
func check(dev string) (err error) {
	if err := unix.Mount("/dev", "/sysroot/dev", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("not checked: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount("/sysroot/dev", 0)) }()
	c := exec.Command("/sbin/e2fsck", "-p", dev)
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: "/sysroot"}
	c.Dir = "/"
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() <= 2 { // repaired; see e2fsck(8)
		err = nil
	}
	return err
}

// become makes dir the root directory and runs path there instead of this program.
func become(dir, path string) error {
	for _, m := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := unix.Mount(m, dir+m, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m, err)
		}
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", path, unix.Exec(path, []string{"/sbin/init"}, []string{"TERM=linux", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}))
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func (m mount) do() error {
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s from %s as %s: %w", m.target, m.source, m.kind, err)
	}
	return nil
}

// parameter returns the value of name in a kernel command line, or "".
func parameter(cmdline, name string) string {
	value := ""
	for f := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(f, name+"="); ok {
			value = v
		}
	}
	return value
}

// loadModules loads the modules that dir/order names, each line a driver and before it
// what it needs. If one of a line finds no device of its kind, the rest of the line has
// no use and is left out.
func loadModules(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		for name := range strings.FieldsSeq(line) {
			err := loadModule(filepath.Join(dir, name))
			if errors.Is(err, unix.ENODEV) {
				break
			}
			if err != nil && !errors.Is(err, unix.EEXIST) {
				fmt.Fprintf(os.Stderr, "msgw init: module %s: %v\n", name, err)
			}
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// partition waits for the partition of that GPT name and returns its device.
func partition(name string) (string, error) {
	for end := time.Now().Add(diskWait); ; time.Sleep(20 * time.Millisecond) {
		dev, err := findPartition("/sys/class/block", name)
		if err != nil {
			return "", err
		}
		if dev != "" {
			return filepath.Join("/dev", dev), nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no partition has the name %s", name)
		}
	}
}

// findPartition returns the kernel's name for the partition, or "".
func findPartition(dir, name string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), "uevent"))
		if err != nil {
			continue // it went away meanwhile
		}
		for line := range strings.Lines(string(b)) {
			if line == "PARTNAME="+name+"\n" {
				return e.Name(), nil
			}
		}
	}
	return "", nil
}
