package main

import (
	"os"
	"path/filepath"
	"testing"
)

// iso and fat are the first sectors of file systems with a label.
func iso(label string) []byte {
	b := make([]byte, 17*2048)
	d := b[16*2048:]
	copy(d, "\x01CD001\x01\x00")
	copy(d[40:72], label+"                                ")
	return b
}

func fat(kind string, at, label int, name string) []byte {
	b := make([]byte, 4096)
	copy(b[at:], kind)
	copy(b[label:label+11], name+"           ")
	b[510], b[511] = 0x55, 0xaa
	return b
}

func TestLabelled(t *testing.T) {
	t.Parallel()
	sys, dev := t.TempDir(), t.TempDir()
	add := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(sys, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if b == nil {
			return
		}
		if err := os.WriteFile(filepath.Join(dev, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// None of these is a seed, short and broken ones among them.
	add("fd0", nil)
	add("loop0", []byte{})
	add("sda", make([]byte, 512))
	add("sdb", []byte("\x55\xaa"))
	add("sr0", iso("INSTALLER"))
	add("vda", make([]byte, 40*2048))
	add("vda1", fat("FAT32   ", 82, 71, "MSGW-ESP"))
	add("vdb", fat("NTFS    ", 82, 71, "CIDATA"))
	boot := iso("CIDATA")
	boot[16*2048] = 0 // a boot record, not a primary descriptor
	add("sr1", boot)
	unsigned := fat("FAT16   ", 54, 43, "CIDATA")
	unsigned[511] = 0
	add("vde", unsigned)
	if got, kind, err := labelled(sys, dev); got != "" || kind != "" || err != nil {
		t.Errorf("%q %q %v, expected none", got, kind, err)
	}
	for _, c := range []struct {
		b    []byte
		kind string
	}{
		{iso("CIDATA"), "iso9660"}, {iso("cidata"), "iso9660"},
		{fat("FAT12   ", 54, 43, "CIDATA"), "vfat"}, {fat("FAT16   ", 54, 43, "cidata"), "vfat"}, {fat("FAT32   ", 82, 71, "CIDATA"), "vfat"},
	} {
		add("vda2", c.b)
		if got, kind, err := labelled(sys, dev); got != filepath.Join(dev, "vda2") || kind != c.kind || err != nil {
			t.Errorf("%q %q %v, expected vda2 %s", got, kind, err, c.kind)
		}
	}
}

func FuzzVolumeLabel(f *testing.F) {
	f.Add(iso("CIDATA"))
	f.Add(fat("FAT16   ", 54, 43, "CIDATA"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		label, kind := volumeLabel(octets(b))
		if (label != "" || kind != "") && kind != "iso9660" && kind != "vfat" {
			t.Errorf("%q %q", label, kind)
		}
	})
}

// octets is a device that holds them and no more.
type octets []byte

func (o octets) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(o)) {
		return 0, os.ErrInvalid
	}
	n := copy(p, o[off:])
	if n < len(p) {
		return n, os.ErrInvalid
	}
	return n, nil
}
