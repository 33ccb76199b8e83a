package journal

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"msgw/internal/disk/disktest"
)

// Each octet of each file of a small journal changes once, each file is cut at each
// length and is missing once: one message at most is lost by it, and not in silence;
// what is read is what was written; a deleted message comes back only with damage told.
func TestEveryOctet(t *testing.T) {
	t.Parallel()
	first := disktest.New(rand.New(rand.NewPCG(1, 1)))
	opt := Options{FS: first, InlineMax: 100, SegmentSize: 500, Reserve: 1, CompactRate: -1}
	j, err := Open("journal", opt)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(2, 2))
	sealed, dead := map[ID][]byte{}, map[ID]bool{}
	var ids []ID
	for i, size := range []int{60, 70, 150, 80, 60, 160} {
		id := ID{byte(i + 1)}
		ids = append(ids, id)
		sealed[id] = text(rng, size)
		if err := store(j, id, "mbx-1", sealed[id]); err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			if err := j.Delete(ids[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	dead[ids[0]] = true
	j.Close()
	names := first.Names()
	for _, name := range names { // side files are not flushed
		first.Change(name, bytes.Clone)
		if err := first.SyncDir(filepath.Dir(name)); err != nil {
			t.Fatal(err)
		}
	}
	whole := first.Snapshot()
	for _, sides := range []bool{true, false} {
		try := func(what, changed string, at int, removed bool, change func([]byte) []byte) {
			disk := disktest.New(rand.New(rand.NewPCG(3, 3)))
			disk.Revert(whole)
			if !sides {
				for _, name := range names {
					if isSide(filepath.Base(name)) {
						disk.Remove(name)
					}
				}
			}
			if removed {
				disk.Remove(changed)
			} else {
				disk.Change(changed, change)
			}
			o := opt
			o.FS = disk
			j, err := Open("journal", o)
			if err != nil {
				t.Fatalf("%s %s at %d: %v", what, changed, at, err)
			}
			defer j.Close()
			lost, back, listed := 0, 0, map[ID]bool{}
			for _, m := range j.List("mbx-1") {
				listed[m.ID] = true
				b, err := load(j, m.ID)
				switch {
				case dead[m.ID]:
					back++
				case err != nil:
					lost++
				case !bytes.Equal(b, sealed[m.ID]):
					t.Errorf("%s %s at %d: other octets", what, changed, at)
				}
			}
			for id := range sealed {
				if !listed[id] && !dead[id] {
					lost++
				}
			}
			if told := len(j.Damaged()); lost+back > 0 && told == 0 || what == "changed" && lost > 1 {
				t.Errorf("%s %s at %d, side files %v: %d messages lost, %d back, damage %v", what, changed, at, sides, lost, back, j.Damaged())
			}
		}
		for _, name := range names {
			if !sides && isSide(filepath.Base(name)) {
				continue
			}
			size := 0
			first.Change(name, func(b []byte) []byte { size = len(b); return b })
			for at := range size {
				try("changed", name, at, false, func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b })
			}
			segment := isSegment(filepath.Base(name))
			// Without a side file a log that is cut looks like one that a crash ended.
			for at := 0; at < size && (sides || !segment); at++ {
				try("cut", name, at, false, func(b []byte) []byte { return b[:at] })
			}
			if strings.Contains(name, bodiesDir) || isSide(filepath.Base(name)) {
				try("missing", name, 0, true, nil)
			}
		}
	}
}
