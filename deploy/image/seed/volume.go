package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// volumeWait bounds how long a volume is waited for on a machine that has no
// configuration: disks and CD drives are found in no particular order.
const volumeWait = 5 * time.Second

// findVolume reads the seed from the first volume with the label. The place is for the
// console. A nil seed says that there is no such volume.
func findVolume() (place string, s seed, err error) {
	for end := time.Now().Add(volumeWait); ; time.Sleep(200 * time.Millisecond) {
		dev, kind, err := labelled("/sys/class/block", "/dev")
		if err != nil {
			return "", nil, err
		}
		if dev != "" {
			s, err := mounted(dev, kind)
			return "volume CIDATA on " + dev, s, err
		}
		if time.Now().After(end) {
			return "", nil, nil
		}
	}
}

// labelled returns the first block device with the label, and its file system.
func labelled(sys, devices string) (dev, kind string, err error) {
	entries, err := os.ReadDir(sys)
	if err != nil {
		return "", "", err
	}
	for _, e := range entries {
		path := filepath.Join(devices, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue // an empty drive, or one that went away
		}
		label, kind := volumeLabel(f)
		f.Close()
		if strings.EqualFold(label, "cidata") {
			return path, kind, nil
		}
	}
	return "", "", nil
}

// volumeLabel returns the label of an ISO 9660 or FAT file system, and which it is.
func volumeLabel(r io.ReaderAt) (label, kind string) {
	b := make([]byte, 2048)
	// ECMA-119 section 8.4: the primary volume descriptor, in sector 16.
	if _, err := r.ReadAt(b, 16*2048); err == nil && b[0] == 1 && string(b[1:6]) == "CD001" {
		return strings.TrimRight(string(b[40:72]), " \x00"), "iso9660"
	}
	// Microsoft's FAT specification, section 3: the boot sector. Its label is the
	// volume's unless the root directory was relabelled, which mkfs does not do.
	if n, err := r.ReadAt(b[:512], 0); n < 512 || err != nil && !errors.Is(err, io.EOF) {
		return "", ""
	}
	if binary.LittleEndian.Uint16(b[510:]) != 0xaa55 {
		return "", ""
	}
	for _, fat := range []struct{ kind, label int }{{54, 43}, {82, 71}} {
		if bytes.HasPrefix(b[fat.kind:], []byte("FAT")) {
			return strings.TrimRight(string(b[fat.label:fat.label+11]), " "), "vfat"
		}
	}
	return "", ""
}

// mounted reads the seed on a device.
func mounted(dev, kind string) (s seed, err error) {
	dir, err := os.MkdirTemp("/run", "msgw-seed-volume-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount(dev, dir, kind, flags, ""); err != nil {
		return nil, fmt.Errorf("mount %s as %s: %w", dev, kind, err)
	}
	defer func() {
		if uerr := unix.Unmount(dir, 0); err == nil && uerr != nil {
			err = fmt.Errorf("unmount %s: %w", dev, uerr)
		}
	}()
	return readSeed(dir, onVolume)
}
