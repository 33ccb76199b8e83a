package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// machineID gives the machine the same id at every start, see machine-id(5): the
// journal is filed under it and a DHCP server knows the machine by it. It is made at
// the first start, kept in the file kept, and written to etc, which is in memory.
func machineID(kept, etc string) error {
	b, err := os.ReadFile(kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	id := strings.TrimSpace(string(b))
	if !validMachineID(id) {
		raw := make([]byte, 16)
		rand.Read(raw)
		// RFC 9562 section 5.4, as machine-id(5) wants it.
		raw[6], raw[8] = raw[6]&0x0f|0x40, raw[8]&0x3f|0x80
		id = hex.EncodeToString(raw)
		if err := keep(kept, id); err != nil {
			return fmt.Errorf("machine id: %w", err)
		}
	}
	return os.WriteFile(etc, []byte(id+"\n"), 0o444)
}

func validMachineID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 16 && strings.Trim(id, "0") != ""
}

// keep writes the file whole or not at all.
func keep(path, id string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".machine-id-")
	if err != nil {
		return err
	}
	_, err = f.WriteString(id + "\n")
	if err := errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
