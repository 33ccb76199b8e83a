package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// verity says what a root partition has to be: so many blocks of a file system, behind
// them a block with the superblock of the hash tree, behind that the tree, as
// `veritysetup format` writes it.
type verity struct {
	blocks uint64 // of data
	root   string // hash over all, hexadecimal
	salt   string // hexadecimal, or "-"
}

// verityBlock is the size of blocks of data and tree.
const verityBlock = 4096

// parseVerity reads "BLOCKS ROOTHASH SALT".
func parseVerity(s string) (verity, error) {
	var v verity
	if n, err := fmt.Sscanf(strings.TrimSpace(s), "%d %s %s", &v.blocks, &v.root, &v.salt); err != nil || n != 3 {
		return v, fmt.Errorf("/verity: %q, expected blocks, root hash and salt", s)
	}
	h, err := hex.DecodeString(v.root)
	if err != nil || len(h) != 32 || v.blocks == 0 {
		return v, fmt.Errorf("/verity: %q, expected blocks, root hash and salt", s)
	}
	if _, err := hex.DecodeString(v.salt); err != nil && v.salt != "-" {
		return v, fmt.Errorf("/verity: salt %q is not hexadecimal", v.salt)
	}
	return v, nil
}

// table is the target line for the kernel, see Documentation/admin-guide/
// device-mapper/verity.rst.
func (v verity) table(dev string) string {
	return fmt.Sprintf("1 %s %s %d %d %d %d sha256 %s %s", dev, dev, verityBlock, verityBlock, v.blocks, v.blocks+1, v.root, v.salt)
}

// open makes a device from which dev can be read as far as it is what it has to be.
// A block that is not reads as an error.
func (v verity) open(dev string) (string, error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	sectors := v.blocks * (verityBlock / 512)
	for _, step := range []struct {
		what string
		op   uintptr
		flag uint32
		body []byte
	}{
		{"create", dmDevCreate, 0, nil},
		{"load", dmTableLoad, dmReadOnly, dmTarget("verity", sectors, v.table(dev))},
		{"resume", dmDevSuspend, dmReadOnly, nil}, // without the suspend flag it resumes
	} {
		if err := dmCall(control, step.op, step.flag, step.body); err != nil {
			return "", fmt.Errorf("dm-verity on %s: %s: %w", dev, step.what, err)
		}
	}
	return "/dev/dm-0", nil // the first, as nobody else makes any
}

// From linux/dm-ioctl.h.
const (
	dmDevCreate  = 3
	dmDevSuspend = 6
	dmTableLoad  = 9
	dmReadOnly   = 1 << 0
	dmHeader     = 312 // octets of struct dm_ioctl, as the ioctl numbers have it
	dmName       = 48  // offset of the name in it
	dmMagic      = 0xfd
)

// dmTarget is a struct dm_target_spec and its parameters.
func dmTarget(kind string, sectors uint64, parameters string) []byte {
	const spec = 40
	b := make([]byte, (spec+len(parameters)+1+7)&^7)
	binary.NativeEndian.PutUint64(b[8:], sectors)
	binary.NativeEndian.PutUint32(b[20:], uint32(len(b)))
	copy(b[24:spec-1], kind)
	copy(b[spec:], parameters)
	return b
}

// dmRequest is a struct dm_ioctl about the device "root", and one target or none.
func dmRequest(flags uint32, target []byte) []byte {
	b := make([]byte, dmHeader+len(target))
	binary.NativeEndian.PutUint32(b[0:], 4) // version of the interface
	binary.NativeEndian.PutUint32(b[12:], uint32(len(b)))
	binary.NativeEndian.PutUint32(b[16:], dmHeader)
	if target != nil {
		binary.NativeEndian.PutUint32(b[20:], 1)
	}
	binary.NativeEndian.PutUint32(b[28:], flags)
	copy(b[dmName:], "root")
	copy(b[dmHeader:], target)
	return b
}

func dmCall(control *os.File, op uintptr, flags uint32, target []byte) error {
	b := dmRequest(flags, target)
	request := uintptr(3)<<30 | dmHeader<<16 | dmMagic<<8 | op // _IOWR
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		if errors.Is(errno, unix.EINVAL) {
			return fmt.Errorf("%w (the kernel's lines above say why)", errno)
		}
		return errno
	}
	return nil
}
