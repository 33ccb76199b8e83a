//go:build power

package power

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// platter makes a disk of eight sectors full of '0'.
func platter(t *testing.T) (string, *disk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{'0'}, 8*sector), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, d
}

// contents is a letter for each sector; every sector has to be whole.
func contents(t *testing.T, b []byte) string {
	t.Helper()
	s := ""
	for at := 0; at < len(b); at += sector {
		if !bytes.Equal(b[at:at+sector], bytes.Repeat(b[at:at+1], sector)) {
			t.Fatalf("sector %d is torn", at/sector)
		}
		s += string(b[at])
	}
	return s
}

// TestDisk cuts the power of a disk 1000 times and checks what is left of each sector:
// what was flushed, or something that was written behind it.
func TestDisk(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for seed := range uint64(1000) {
		path, d := platter(t)
		put := func(letters string, at int64, durable bool) bool {
			var b []byte
			for i := range letters {
				b = append(b, bytes.Repeat([]byte{letters[i]}, sector)...)
			}
			return d.write(b, at*sector, durable)
		}
		if !put("aaa", 0, false) || !d.flush() || !put("bbbb", 1, false) || !put("c", 2, false) || !put("d", 4, true) || !put("e", 6, true) || !put("f", 6, false) {
			t.Fatal("the power is off")
		}
		b := make([]byte, 8*sector)
		if !d.read(b, 0) || contents(t, b) != "abcbd0f0" {
			t.Fatalf("read %q", contents(t, b))
		}
		dark := make(chan struct{})
		d.arm(1, func() { close(dark) })
		if put("g", 7, true) {
			t.Fatal("the last write was answered")
		}
		<-dark
		if put("x", 0, false) || d.flush() || d.read(b, 0) {
			t.Fatal("answered without power")
		}
		if _, err := d.lose(rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		left := contents(t, b)
		for i, may := range []string{"a", "ab", "abc", "0b", "d", "0", "ef", "0g"} {
			if !bytes.ContainsRune([]byte(may), rune(left[i])) {
				t.Fatalf("seed %d: %q, and sector %d may be one of %q", seed, left, i, may)
			}
		}
		seen[left] = true
	}
	// Nothing, all, a part of one request, and an older write where the newer one is lost.
	for _, want := range []string{"aaa0d0e0", "abcbd0fg", "aba0d0e0", "aab0d0f0"} {
		if !seen[want] {
			t.Errorf("%q was never left", want)
		}
	}
}

// TestDiskIsCutByTime cuts between requests.
func TestDiskIsCutByTime(t *testing.T) {
	t.Parallel()
	_, d := platter(t)
	if _, err := d.lose(rand.New(rand.NewPCG(1, 1))); err == nil {
		t.Error("lost something with the power on")
	}
	d.arm(2, func() { t.Error("the fuse went after the cut") })
	d.cut()
	for range 2 {
		if d.flush() {
			t.Error("answered without power")
		}
	}
	time.Sleep(10 * time.Millisecond)
	if _, err := d.lose(rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Error(err)
	}
}
