//go:build peers

package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Root is this machine's file system with Debian packages installed over it. Programs
// run in it, at their usual paths, as on a machine of their own; what they write is
// gone with the suite. The temporary directory is this machine's, at the same path.
type Root struct {
	Name     string
	Packages []string
}

// install installs the packages into the upper layer that mount puts below the
// suite's own, unless an earlier run did.
func (r *Root) install() error {
	base := filepath.Join(cacheDir, r.Name)
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(base+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	want := strings.Join(r.Packages, " ")
	if b, err := os.ReadFile(filepath.Join(base, "installed")); err == nil && string(b) == want {
		return nil
	}
	if err := os.RemoveAll(base); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
			return err
		}
	}
	// A mount namespace of its own, so that nothing stays mounted. Services must not
	// start: policy-rc.d says so to Debian's maintainer scripts.
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-euc", `
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/merged"
for d in /proc /sys /dev; do mount --rbind $d "$1/merged$d"; done
printf '#!/bin/sh\nexit 101\n' >"$1/merged/usr/sbin/policy-rc.d"
chmod 755 "$1/merged/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive
chroot "$1/merged" apt-get update -q
chroot "$1/merged" apt-get install -y -q --no-install-recommends $2
`, "install", base, want)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("install %s: %w\n%s", want, err, out[max(0, len(out)-4000):])
	}
	return os.WriteFile(filepath.Join(base, "installed"), []byte(want), 0o644)
}

// mount mounts the root, with a layer above that is the suite's own.
func (r *Root) mount() error {
	// Two overlays, as the kernel takes no layer from below another: what is installed,
	// read-only, and above it what the suite writes, in memory.
	dir, base := filepath.Join(os.Getenv(insideEnv), r.Name), filepath.Join(cacheDir, r.Name)
	installed, layer, merged := filepath.Join(dir, "installed"), filepath.Join(dir, "layer"), r.Path("/")
	upper, work := filepath.Join(layer, "upper"), filepath.Join(layer, "work")
	overlay := func(target, lower, upper, work string, flags uintptr) error {
		return unix.Mount("overlay", target, "overlay", flags, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
	}
	err := errors.Join(os.MkdirAll(installed, 0o755), os.MkdirAll(layer, 0o755), os.MkdirAll(merged, 0o755))
	if err == nil {
		err = overlay(installed, "/", filepath.Join(base, "upper"), filepath.Join(base, "work"), unix.MS_RDONLY)
	}
	if err == nil {
		err = unix.Mount("layer", layer, "tmpfs", 0, "mode=755")
	}
	if err == nil {
		err = errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755))
	}
	if err == nil {
		err = overlay(merged, installed, upper, work, 0)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	for _, d := range []string{"/proc", "/sys", "/dev", os.TempDir()} {
		if err := unix.Mount(d, r.Path(d), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("%s%s: %w", r.Name, d, err)
		}
	}
	os.Remove(r.Path("/etc/resolv.conf")) // it may be a link
	return os.WriteFile(r.Path("/etc/resolv.conf"), []byte(resolvConf), 0o644)
}

// Path returns where this machine sees a file of the root.
func (r *Root) Path(file string) string {
	return filepath.Join(os.Getenv(insideEnv), r.Name, "merged", file)
}

// Write writes a file of the root, and the directories above it.
func (r *Root) Write(t testing.TB, file, text string, mode os.FileMode) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(r.Path(file)), 0o755)
	if err == nil {
		err = os.WriteFile(r.Path(file), []byte(text), mode)
	}
	if err == nil {
		err = os.Chmod(r.Path(file), mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Command returns the command to run a program of the root, given by its absolute
// path, in the root.
func (r *Root) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TMPDIR=" + os.TempDir()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.Path("/")}
	// What a killed program left running may hold its output open.
	cmd.WaitDelay = waitDelay
	return cmd
}

// Output runs a program of the root and returns what it printed, with a test's
// failure if it did not end with 0.
func (r *Root) Output(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := r.Command(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Versions logs the versions of the root's packages.
func (r *Root) Versions(t testing.TB) {
	t.Helper()
	var missing error
	for _, p := range r.Packages {
		out, err := r.Command(t.Context(), "/usr/bin/dpkg-query", "-W", "-f", "${Version}", p).Output()
		if err != nil {
			missing = errors.Join(missing, fmt.Errorf("%s: %w", p, err))
			continue
		}
		t.Logf("judged by %s %s", p, out)
	}
	if missing != nil {
		t.Error(missing)
	}
}
