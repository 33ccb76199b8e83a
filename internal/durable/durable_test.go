package durable

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"msgw/internal/disk/disktest"
)

func TestReplaceFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, text := range []string{"first", "second, longer", ""} {
		if err := ReplaceFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("%q, %v", b, err)
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	// A failure leaves the old octets, and nothing beside them.
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "taken", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReplaceFile(filepath.Join(dir, "taken"), []byte("x")); err == nil {
		t.Error("a directory was replaced")
	}
	if err := ReplaceFile(filepath.Join(dir, "missing", "file"), nil); err == nil {
		t.Error("wrote into a directory that is not there")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

// After a power cut at any operation, or a fault of it, the old or the new octets are
// there; the new ones if they were acknowledged.
func TestWriteFileIsWhole(t *testing.T) {
	t.Parallel()
	const before, after = "before", "what is written now"
	for step := range 8 {
		for seed := range uint64(50) {
			d := disktest.New(rand.New(rand.NewPCG(seed, 1)))
			if err := WriteFile(d, "file", []byte(before)); err != nil {
				t.Fatal(err)
			}
			left := step
			d.Fail(func(string, string) error {
				if left--; left < 0 {
					return syscall.EIO
				}
				return nil
			})
			err := WriteFile(d, "file", []byte(after))
			if err != nil && !errors.Is(err, syscall.EIO) || err == nil && step < 5 {
				t.Errorf("step %d: %v", step, err)
			}
			d.Crash()
			b, rerr := ReadFile(d, "file")
			if got := string(b); rerr != nil || got != after && (got != before || err == nil) {
				t.Errorf("step %d, seed %d: %q %v, written %v", step, seed, got, rerr, err)
			}
		}
	}
}
