package journal

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"msgw/internal/disk/disktest"
)

// A side file speeds up a start and changes nothing else: one that is missing, torn,
// changed, of another segment, or older than the segment is not used.
func TestSideFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{SegmentSize: 3000, CompactRate: -1})
	ids := storeSome(t, j, 10, 1000)
	if err := j.Delete(ids[3]); err != nil {
		t.Fatal(err)
	}
	j.Close()
	segments := segmentsOf(t, dir)
	other, err := os.ReadFile(sidePath(segments[1]))
	if err != nil {
		t.Fatal(err)
	}
	side := sidePath(segments[0])
	good, err := os.ReadFile(side)
	if err != nil {
		t.Fatal(err)
	}
	open := func(what string, used bool) {
		t.Helper()
		j := openDir(t, dir, Options{CompactRate: -1})
		defer j.Close()
		// A whole side file that does not fit says that the segment was changed.
		if n := len(listed(j)); n != 9 || len(j.Damaged()) > 0 != strings.Contains(what, "end mark") {
			t.Errorf("%s: %d messages, damage %v", what, n, j.Damaged())
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		for _, s := range j.segments {
			if s.path == segments[0] && s.side != used {
				t.Errorf("%s: used %v", what, s.side)
			}
		}
	}
	open("as written", true)
	for i := range 50 {
		bad := bytes.Clone(good)
		bad[rand.New(rand.NewPCG(uint64(i), 1)).IntN(len(bad))] ^= 4
		for what, b := range map[string][]byte{"changed": bad, "torn": good[:len(good)-1-i], "of another": other, "empty": nil} {
			if err := os.WriteFile(side, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if i == 0 || what == "changed" {
				open(what, false)
			}
		}
	}
	os.WriteFile(side, good, 0o600)
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	end := bytes.Clone(b[len(b)-64:])
	copy(end[40:], "12345678") // another end mark
	crcOf := appendRecord(nil, prefix{kind: kindTombstone, durable: binary.BigEndian.Uint64(end[24:]), generation: binary.BigEndian.Uint32(end[32:])}, end[40:60], nil)
	os.WriteFile(segments[0], append(bytes.Clone(b[:len(b)-64]), crcOf...), 0o600)
	open("of a segment with another end mark", false)
	os.WriteFile(side, good, 0o600)
	os.WriteFile(segments[0], b, 0o600)
	// The background writes what is missing.
	j = openDir(t, dir, Options{})
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if again, err := os.ReadFile(side); err == nil && len(again) == len(good) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no side file is written")
		}
	}
	if err := j.Delete(listed(j)...); err != nil {
		t.Fatal(err)
	}
	j.Close()
	openDir(t, dir, Options{}).Close()
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) > 0 {
		t.Errorf("left on disk: %v", left)
	}
}

// Reserved room that was never written is no torn tail; room that the disk does not
// give is not missed; what a finished segment did not use is given back.
func TestReservedRoom(t *testing.T) {
	t.Parallel()
	for _, gives := range []bool{true, false} {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		if !gives {
			disk.Fail(func(op, _ string) error {
				if op == "allocate" {
					return os.ErrInvalid
				}
				return nil
			})
		}
		var log bytes.Buffer
		j, err := Open("journal", Options{FS: disk, SegmentSize: 100_000, CompactRate: -1})
		if err != nil {
			t.Fatal(err)
		}
		ids := storeSome(t, j, 5, 1000)
		if n := segmentOctets(disk); (n == 100_000) != gives {
			t.Errorf("the segment takes %d octets", n)
		}
		disk.Crash()
		j.Close()
		k, err := Open("journal", Options{FS: disk, SegmentSize: 100_000, CompactRate: -1, Log: slogTo(&log)})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(listed(k)); n != len(ids) || len(k.Damaged()) > 0 {
			t.Errorf("%d messages, damage %v", n, k.Damaged())
		}
		if strings.Contains(log.String(), "unfinished") {
			t.Errorf("taken for torn: %s", log.String())
		}
		if err := k.compact(); err != nil { // the room counts as dead
			t.Fatal(err)
		}
		k.Close()
		if n := segmentOctets(disk); n > 7000 {
			t.Errorf("%d octets for 5000", n)
		}
	}
}
