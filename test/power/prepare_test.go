//go:build power

// Package power cuts the power of a machine that receives mail, again and again, and
// checks that every message that was acknowledged is still there, octet for octet. The
// machine is QEMU's, with Debian's kernel; its disk is ours and has a write cache that
// forgets. It needs Debian's tools, which it names if they are missing, and apt for the
// kernel; MSGW_POWER_KERNEL names a file with a linux-image package to take instead.
//
//	go test -tags power -count=1 -v ./test/power
//
// MSGW_POWER_ROUNDS is how many cuts a test makes, MSGW_SEED starts the same ones again:
// what is sent, when the power goes, counted in writes to the disk, and what is lost.
// What runs in between takes its own time, so that the same seed is not the same history.
// MSGW_POWER_KEEP names a directory for the disk of a test that failed.
package power

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"msgw/internal/lab"
)

// built is what all tests share.
var built struct {
	dir     string
	msgw    string // the program, of the sources as they are
	guest   string
	kernel  string
	modules []string // files, in the order to load them
}

func TestMain(m *testing.M) { os.Exit(prepare(m)) }

func prepare(m *testing.M) int {
	missing := map[string]bool{}
	for tool, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "/usr/share/seabios/bios-256k.bin": "seabios",
		"/usr/share/qemu/linuxboot_dma.bin": "qemu-system-x86", "mkfs.ext4": "e2fsprogs", "depmod": "kmod", "dpkg-deb": "dpkg", "apt-get": "apt"} {
		if _, err := exec.LookPath(tool); err != nil {
			if _, err := os.Stat(tool); err != nil {
				missing[pkg] = true
			}
		}
	}
	if len(missing) > 0 {
		fmt.Fprint(os.Stderr, "missing, install with: apt-get install --no-install-recommends")
		for pkg := range missing {
			fmt.Fprint(os.Stderr, " ", pkg)
		}
		fmt.Fprintln(os.Stderr)
		return 1
	}
	// Short: the path of a socket has room for 107 octets.
	dir, err := os.MkdirTemp("", "msgw-power-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	built.dir, built.msgw, built.guest = dir, filepath.Join(dir, "msgw"), filepath.Join(dir, "guest")
	err = errors.Join(build(built.msgw, "msgw/cmd/msgw"), build(built.guest, "msgw/test/power/guest"))
	if err == nil {
		err = unpackKernel()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build builds a program for a machine without any library.
func build(to, pkg string, more ...string) error {
	cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", to}, more...), pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// wanted are the modules for the disk, its file system and the network card.
var wanted = []string{"drivers/virtio/virtio_pci", "drivers/block/virtio_blk", "drivers/net/virtio_net", "crypto/crc32c_generic", "fs/ext4/ext4"}

// unpackKernel gets Debian's kernel for virtual machines.
func unpackKernel() error {
	deb, dir := os.Getenv("MSGW_POWER_KERNEL"), filepath.Join(built.dir, "kernel")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, complaints.Bytes())
		}
		return string(out), err
	}
	if deb == "" {
		depends, err := run("apt-cache", "depends", "linux-image-cloud-amd64")
		if err != nil {
			return err
		}
		name := ""
		for f := range strings.FieldsSeq(depends) {
			if strings.HasPrefix(f, "linux-image-") && f != "linux-image-cloud-amd64" {
				name = f
			}
		}
		if name == "" {
			return fmt.Errorf("apt knows no kernel: linux-image-cloud-amd64 depends on %q", depends)
		}
		if _, err := run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", name); err != nil {
			return err
		}
		list, err := filepath.Glob(filepath.Join(dir, "*.deb"))
		if err != nil || len(list) != 1 {
			return fmt.Errorf("apt-get download %s: %q %w", name, list, err)
		}
		deb = list[0]
	}
	if _, err := run("dpkg-deb", "-x", deb, dir); err != nil {
		return err
	}
	trees, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
	if err != nil || len(trees) != 1 {
		return fmt.Errorf("%s holds the modules of %d kernels", deb, len(trees))
	}
	version := filepath.Base(trees[0])
	built.kernel = filepath.Join(dir, "boot/vmlinuz-"+version)
	if _, err := run("depmod", "-b", dir, version); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(trees[0], "modules.dep"))
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(trees[0], "modules.builtin"))
	if err != nil {
		return err
	}
	// A line is a module and what it needs, what is to be loaded first at its end.
	needs := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		needs[name] = strings.Fields(rest)
	}
	seen := map[string]bool{}
	add := func(name string) {
		if !seen[name] {
			seen[name] = true
			built.modules = append(built.modules, filepath.Join(trees[0], name))
		}
	}
	for _, name := range wanted {
		name = path.Join("kernel", name+".ko")
		if strings.Contains(string(builtin), name+"\n") {
			continue
		}
		list, there := needs[name]
		if !there {
			return fmt.Errorf("this kernel has no module %s", name)
		}
		for i := range list {
			add(list[len(list)-1-i])
		}
		add(name)
	}
	return nil
}

// guestAddress is what QEMU's network expects a machine to have.
const guestAddress = "10.0.2.15"

// service is a port of the machine and what it leads to.
type service struct{ port, to string }

// services are those of a node, by name.
func services(i int, n lab.NodeRow) map[string]service {
	port := func(base int) string { return fmt.Sprint(base + i) }
	return map[string]service{
		"smtp":  {port(2500), "tcp " + n.SMTP},
		"pop3s": {port(9900), "tcp " + n.POP3S},
		"admin": {port(8400), "unix " + filepath.Join(n.Dir, "msgw.sock")},
	}
}

// writeInitrd writes the memory file system that a machine with f's nodes, and f's
// directory on its disk, starts from. program takes the place of msgw.
func writeInitrd(to, program, mount string, f lab.File) error {
	settings := struct {
		Mount, Address string
		Modules        []string
		Run            map[string][]string
		Forward        map[string]string
	}{mount, guestAddress, nil, map[string][]string{}, map[string]string{}}
	a := &archiveNewc{made: map[string]bool{}}
	a.device("/dev/console", 5, 1)
	for _, dir := range []string{"/proc", "/sys", "/tmp", mount} {
		a.directory(dir)
	}
	for _, m := range built.modules {
		name := path.Join("/modules", filepath.Base(m))
		settings.Modules = append(settings.Modules, name)
		a.copy(name, m)
	}
	a.copy("/init", built.guest)
	for i, n := range f.Nodes {
		settings.Run[n.Name] = append([]string{"/msgw"}, n.Argv[1:]...)
		for _, s := range services(i, n) {
			settings.Forward[s.port] = s.to
		}
	}
	a.copy("/msgw", program)
	b, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	a.file("/guest.json", b)
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	if a.err != nil {
		return a.err
	}
	return os.WriteFile(to, a.out.Bytes(), 0o600)
}

// archiveNewc is a cpio archive as the kernel reads it, see Documentation/
// driver-api/early-userspace/buffer-format.rst.
type archiveNewc struct {
	out  bytes.Buffer
	made map[string]bool // directories
	err  error
}

func (a *archiveNewc) entry(name string, mode uint32, content []byte, major, minor int) {
	ino := a.out.Len() // any number that differs
	fmt.Fprintf(&a.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name)
	a.pad()
	a.out.Write(content)
	a.pad()
}

func (a *archiveNewc) pad() {
	for a.out.Len()%4 != 0 {
		a.out.WriteByte(0)
	}
}

func (a *archiveNewc) directory(name string) {
	if name == "/" || a.made[name] {
		return
	}
	a.directory(path.Dir(name))
	a.made[name] = true
	a.entry(name[1:], 0o040755, nil, 0, 0)
}

func (a *archiveNewc) file(name string, content []byte) {
	a.directory(path.Dir(name))
	a.entry(name[1:], 0o100755, content, 0, 0)
}

func (a *archiveNewc) copy(name, from string) {
	b, err := os.ReadFile(from)
	a.err = errors.Join(a.err, err)
	a.file(name, b)
}

func (a *archiveNewc) device(name string, major, minor int) {
	a.directory(path.Dir(name))
	a.entry(name[1:], 0o020600, nil, major, minor)
}
