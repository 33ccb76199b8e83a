//go:build image

// Package image builds the appliance's disk image, starts it in QEMU and works with it
// as senders, archives and operators do. It needs root and Debian's tools, which it
// names if they are missing; MSGW_IMAGE names a directory with an image built before.
//
//	go test -tags image -count=1 -v ./test/image
package image

import (
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
)

// Firmware for UEFI, of Debian's package ovmf.
const (
	firmware     = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// built is the directory of the image.
var built string

func TestMain(m *testing.M) { os.Exit(prepare(m)) }

func prepare(m *testing.M) int {
	missing := map[string]bool{}
	for tool, pkg := range map[string]string{"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", firmware: "ovmf",
		"/usr/share/seabios/bios-256k.bin": "seabios", "/usr/lib/ipxe/qemu/efi-virtio.rom": "ipxe-qemu", "xorriso": "xorriso", "ip": "iproute2",
		"mkfs.vfat": "dosfstools", "mcopy": "mtools", "nft": "nftables", "systemd-analyze": "systemd", "vagrant": "vagrant vagrant-libvirt"} {
		if _, err := exec.LookPath(tool); err != nil {
			if _, err := os.Stat(tool); err != nil {
				missing[pkg] = true
			}
		}
	}
	if len(missing) > 0 {
		var list []string
		for pkg := range missing {
			list = append(list, pkg)
		}
		fmt.Fprintln(os.Stderr, "missing, install with: apt-get install --no-install-recommends", strings.Join(list, " "))
		return 1
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the image can only be built by root")
		return 1
	}
	built = os.Getenv("MSGW_IMAGE")
	if built == "" {
		dir, err := os.MkdirTemp("", "msgw-image-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		start := time.Now()
		cmd := exec.Command(top("deploy/image/build"), dir)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build:", err)
			return 1
		}
		fmt.Printf("the image is built: %.0f s\n", time.Since(start).Seconds())
		built = dir
	}
	return inside(m)
}

// inside runs the tests in a network namespace of their own, with a loopback device and
// nothing else: QEMU's network there reaches nobody but the tests. Its own restriction
// would also stop answers by UDP to forwarded ports.
func inside(m *testing.M) int {
	if os.Getenv("MSGW_IMAGE_INSIDE") != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ip link set lo up: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), "MSGW_IMAGE_INSIDE=1", "MSGW_IMAGE="+built)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal is sent when this thread ends
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

// top is a path from the top of the tree.
func top(path string) string {
	p, err := filepath.Abs(filepath.Join("..", "..", path))
	if err != nil {
		panic(err)
	}
	return p
}

// testHash is of the password "console-secret".
const (
	testPassword = "console-secret"
	testHash     = "$6$msgwimagetest$O.HoM6TDbSN2bQW7FQAOVBviW/CEde8mWCs4fWttax5YBfUY5BiFtBs66Q807gMa89dDIF3TjMzFF41aOoDda."
)

// config is a msgw.toml. 192.0.2.1 is what the zone answers, nobody listens there.
const config = "name = \"msgw1\"\n[public]\nipv4 = [\"192.0.2.1\"]\npeer = \"192.0.2.1:8451\"\n"

// volume makes an ISO 9660 seed and returns qemu's options for it.
func volume(t *testing.T, files map[string]string) []string {
	t.Helper()
	iso := filepath.Join(t.TempDir(), "seed.iso")
	command(t, top("deploy/image/seed-volume"), directory(t, files), iso)
	return []string{"-drive", "if=none,id=seed,format=raw,readonly=on,file=" + iso, "-device", "ide-cd,drive=seed"}
}

// stick makes a FAT seed, as a second disk.
func stick(t *testing.T, files map[string]string) []string {
	t.Helper()
	fat := filepath.Join(t.TempDir(), "seed.img")
	if err := os.WriteFile(fat, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.vfat", "-n", "CIDATA", fat)
	dir := directory(t, files)
	for name := range files {
		command(t, "mcopy", "-i", fat, filepath.Join(dir, name), "::/")
	}
	return []string{"-drive", "if=virtio,format=raw,readonly=on,file=" + fat}
}

func directory(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestUnit checks what can be checked of the files without a machine.
func TestUnit(t *testing.T) {
	unit := top("deploy/systemd/msgw.service")
	out := command(t, "systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	t.Log(strings.TrimSpace(lines[len(lines)-1]))

	// verify wants the programs to be there, and looks for units in a root directory.
	root := t.TempDir()
	units := filepath.Join(root, "usr/lib/systemd/system")
	for _, dir := range []string{units, filepath.Join(root, "usr/bin")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "cp", "-a", "/lib/systemd/system/.", units)
	command(t, "cp", unit, units)
	if err := os.WriteFile(filepath.Join(root, "usr/bin/msgw"), []byte("#!\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out = command(t, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "--root="+root, "msgw.service")
	if strings.Contains(out, "msgw.service") {
		t.Errorf("systemd-analyze verify: %s", out)
	}

	command(t, "nft", "-c", "-f", top("deploy/nftables.conf"))
	t.Setenv("VAGRANT_HOME", t.TempDir())
	t.Setenv("VAGRANT_CHECKPOINT_DISABLE", "1")
	t.Setenv("VAGRANT_CWD", top("."))
	t.Setenv("VAGRANT_DOTFILE_PATH", t.TempDir())
	if out := command(t, "vagrant", "validate"); !strings.Contains(out, "validated successfully") {
		t.Errorf("vagrant validate: %s", out)
	}
}
