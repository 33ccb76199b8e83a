package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParameter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, want string }{
		{"console=ttyS0 msgw.root=msgw-root-a quiet\n", "msgw-root-a"},
		{"msgw.root=a msgw.root=b", "b"}, // as the kernel does
		{"msgw.rootx=a xmsgw.root=b", ""},
		{"", ""},
	} {
		if got := parameter(c.line, "msgw.root"); got != c.want {
			t.Errorf("%q: %q, expected %q", c.line, got, c.want)
		}
	}
}

func TestFindPartition(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, uevent := range map[string]string{
		"vda":  "DEVNAME=vda\nDEVTYPE=disk\n",
		"vda1": "DEVNAME=vda1\nPARTN=1\nPARTNAME=msgw-root-ab\n",
		"vda2": "DEVNAME=vda2\nPARTN=2\nPARTNAME=msgw-root-a\n",
	} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "uevent"), []byte(uevent), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "gone"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"msgw-root-a": "vda2", "msgw-root-b": ""} {
		if got, err := findPartition(dir, name); got != want || err != nil {
			t.Errorf("%s: %q %v, expected %q", name, got, err, want)
		}
	}
}

func TestVerity(t *testing.T) {
	t.Parallel()
	root := strings.Repeat("5a", 32)
	v, err := parseVerity("25000 " + root + " 6d736777\n")
	if err != nil {
		t.Fatal(err)
	}
	want := "1 /dev/vda3 /dev/vda3 4096 4096 25000 25001 sha256 " + root + " 6d736777"
	if got := v.table("/dev/vda3"); got != want {
		t.Errorf("table %q, expected %q", got, want)
	}
	for _, bad := range []string{"", "0 " + root + " 6d", "25000 " + root, "25000 " + root[2:] + " 6d", "25000 " + root + " salt", "x " + root + " 6d"} {
		if _, err := parseVerity(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestRequest compares with what the kernel reads, offset by offset.
func TestRequest(t *testing.T) {
	t.Parallel()
	target := dmTarget("verity", 200000, "1 /dev/vda3")
	b := dmRequest(dmReadOnly, target)
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	if u32(0) != 4 || u32(12) != uint32(len(b)) || u32(16) != 312 || u32(20) != 1 || u32(28) != 1 {
		t.Errorf("header % x", b[:32])
	}
	if got := string(b[48:53]); got != "root\x00" {
		t.Errorf("name %q", got)
	}
	spec := b[312:]
	if len(spec)%8 != 0 || binary.NativeEndian.Uint64(spec[8:]) != 200000 || binary.NativeEndian.Uint32(spec[20:]) != uint32(len(spec)) ||
		string(spec[24:31]) != "verity\x00" || string(spec[40:52]) != "1 /dev/vda3\x00" {
		t.Errorf("target % x", spec)
	}
}

func TestMachineID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept, etc := filepath.Join(dir, "lib", "machine-id"), filepath.Join(dir, "etc")
	read := func() string {
		t.Helper()
		if err := machineID(kept, etc); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(etc)
		if err != nil {
			t.Fatal(err)
		}
		if id := strings.TrimSuffix(string(b), "\n"); !validMachineID(id) || id[12] != '4' {
			t.Fatalf("id %q", b)
		}
		return string(b)
	}
	first := read()
	os.Chmod(etc, 0o644)
	if second := read(); second != first {
		t.Errorf("%q became %q", first, second)
	}
	for _, broken := range []string{"", "uninitialized\n", strings.Repeat("0", 32)} {
		os.Chmod(etc, 0o644)
		os.Chmod(kept, 0o644)
		if err := os.WriteFile(kept, []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		if again := read(); again == first {
			t.Errorf("%q: the id came back", broken)
		}
	}
}
