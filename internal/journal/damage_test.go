package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"msgw/internal/disk/disktest"
)

func rewrite(t *testing.T, name string, change func([]byte) []byte) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b = change(b)
	os.Remove(sidePath(name))
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// What a newer msgw wrote is neither torn nor rubbish: it stays on the disk, octet
// by octet, its large bodies too, and a person hears of it.
func TestNewerFormatIsKept(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func([]byte) []byte{
		"version": func(b []byte) []byte {
			for i := 0; i < len(b); i += align {
				if string(b[i:min(i+4, len(b))]) == magic {
					b[i+5] = 2
				}
			}
			return b
		},
		"version behind rubbish": func(b []byte) []byte {
			b[0] = 'x'
			for i := align; i < len(b); i += align {
				if string(b[i:min(i+4, len(b))]) == magic {
					b[i+5] = 2
				}
			}
			return b
		},
		"kind": func(b []byte) []byte {
			for i := 0; i < len(b); i += align {
				if string(b[i:min(i+4, len(b))]) == magic {
					b[i+4] = 77
					h := b[i+prefixSize:][:binary.BigEndian.Uint32(b[i+8:])]
					crc := crc32.Update(crc32.Checksum(b[i:i+prefixSize-4], castagnoli), castagnoli, h)
					binary.BigEndian.PutUint32(b[i+prefixSize-4:], crc)
				}
			}
			return b
		},
	} {
		dir := t.TempDir()
		j := openDir(t, dir, Options{InlineMax: 1000})
		storeSome(t, j, 2, 500)
		large := storeSome(t, j, 1, 5000)[0]
		j.Close()
		name := segmentsOf(t, dir)[0]
		want := rewrite(t, name, change)
		for range 2 {
			j = openDir(t, dir, Options{})
			if len(j.Damaged()) == 0 {
				t.Errorf("%s: nobody was told", what)
			}
			j.Close()
			if got, _ := os.ReadFile(name); !bytes.Equal(got, want) {
				t.Fatalf("%s: the segment was changed, %d octets of %d are left", what, len(got), len(want))
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), bodiesDir, large.String())); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// After an orderly end nothing can be torn: a changed octet anywhere is damage,
// in the last record as well.
func TestDamageAtTheEndIsNoTornTail(t *testing.T) {
	t.Parallel()
	for what, fromBody := range map[string]int64{"header": -20, "body": 20} {
		dir := t.TempDir()
		j := openDir(t, dir, Options{})
		ids := storeSome(t, j, 3, 1000)
		at := j.entry(ids[2]).bodyAt() + fromBody
		j.Close()
		name := segmentsOf(t, dir)[0]
		want := rewrite(t, name, func(b []byte) []byte { b[at] ^= 1; return b })
		j = openDir(t, dir, Options{})
		readable, told := 0, len(j.Damaged()) > 0
		for _, m := range j.List("mbx-1") {
			if _, err := load(j, m.ID); err == nil {
				readable++
			} else if errors.Is(err, ErrDamaged) {
				told = true
			}
		}
		if readable != 2 || !told {
			t.Errorf("%s: %d messages readable, want 2; told %v", what, readable, told)
		}
		if got, _ := os.ReadFile(name); !bytes.Equal(got, want) {
			t.Errorf("%s: the segment was changed", what)
		}
	}
}

// One record of a batch that was acknowledged goes bad: the others stay.
func TestBadRecordTakesNoOtherAlong(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	var ms []Message
	for range 5 {
		id := NewID()
		b := j.NewBody(id)
		b.Write(bytes.Repeat([]byte("x"), 1000))
		ms = append(ms, Message{metaOf(id, "mbx-1"), b})
	}
	if err := j.Commit(ms...); err != nil {
		t.Fatal(err)
	}
	e := j.entry(ms[1].Meta.ID)
	disk.Crash()
	f, err := disk.Open(e.seg.path)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("y"), e.bodyAt())
	k, err := Open("journal", Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if n := len(k.List("mbx-1")); n != 4 {
		t.Errorf("%d of the 4 whole messages are left", n)
	}
	j.Close()
}

// A segment that is not the last one of its log ends as it was written, or a
// person hears of it.
func TestShortenedSegmentIsSeen(t *testing.T) {
	t.Parallel()
	for whole, more := range map[int]int64{0: 0, 2: 0, 3: 10} { // records left of it, octets of the next
		dir := t.TempDir()
		j := openDir(t, dir, Options{SegmentSize: 5000})
		ids := storeSome(t, j, 9, 1000)
		cut := j.entry(ids[whole]).bodyAt() - prefixSize - messageHeaderSize - int64(len("mbx-1")) + more
		j.Close()
		names := segmentsOf(t, dir)
		if len(names) < 2 {
			t.Fatal("one segment only")
		}
		rewrite(t, names[0], func(b []byte) []byte { return b[:cut] })
		j = openDir(t, dir, Options{})
		if len(j.Damaged()) != 1 {
			t.Errorf("cut to %d records: damage %v", whole, j.Damaged())
		}
		if n := len(j.List("mbx-1")); n != whole+4 && n != whole+5 {
			t.Errorf("cut to %d records: %d messages", whole, n)
		}
	}
}

// Sectors that cannot be read cost what lies in them and nothing else, and are
// never taken for a torn tail.
func TestUnreadableSector(t *testing.T) {
	t.Parallel()
	for _, which := range []int{1, 4} { // in the middle, and the last message
		for what, fromBody := range map[string]int64{"header": -20, "body": 20} {
			disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
			j, err := Open("journal", Options{FS: disk})
			if err != nil {
				t.Fatal(err)
			}
			ids := storeSome(t, j, 5, 10_000)
			bad, path := j.entry(ids[which]).bodyAt()+fromBody, j.entry(ids[which]).seg.path
			disk.Crash() // no orderly end
			at := bad / sector * sector
			disk.Unreadable(func(name string, from, to int64) bool { return name == path && from < at+sector && at < to })
			k, err := Open("journal", Options{FS: disk})
			if err != nil {
				t.Fatalf("%s of %d: one bad sector keeps everything shut: %v", what, which, err)
			}
			header := prefixSize + messageHeaderSize + int64(len("mbx-1"))
			for i, id := range ids {
				e := j.entry(id)
				hit := e.bodyAt()-header < at+sector && at < e.bodyAt()+e.sealed
				if _, err := load(k, id); (err == nil) == hit {
					t.Errorf("%s of %d: message %d: %v", what, which, i, err)
				}
			}
			if len(k.Damaged()) == 0 && !(what == "body" && which == 1) { // met when it is read
				t.Errorf("%s of %d: nobody was told", what, which)
			}
			k.Close()
			j.Close()
		}
	}
}

// A disk that answers nothing is an error of Open, not an empty journal.
func TestDeadDisk(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk})
	if err != nil {
		t.Fatal(err)
	}
	storeSome(t, j, 100, 10_000)
	j.Close()
	disk.Unreadable(func(string, int64, int64) bool { return true })
	if _, err := Open("journal", Options{FS: disk}); !errors.Is(err, syscall.EIO) {
		t.Errorf("opened: %v", err)
	}
}

// Files of others are left alone and keep nothing from working.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{InlineMax: 100})
	storeSome(t, j, 2, 1000)
	j.Close()
	origin := filepath.Dir(segmentsOf(t, dir)[0])
	dirs := []string{filepath.Join(dir, "lost+found"), filepath.Join(dir, "backup", bodiesDir), filepath.Join(origin, "x.seg"), filepath.Join(origin, bodiesDir, "d")}
	files := []string{filepath.Join(dir, "README"), filepath.Join(dir, "backup", "00000001.seg"), filepath.Join(dir, "backup", bodiesDir, NewID().String()),
		filepath.Join(origin, "notes.seg"), filepath.Join(origin, "notes"), filepath.Join(origin, bodiesDir, "copy.bak")}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		if err := os.WriteFile(f, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		j, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(j.List("mbx-1")); n != 2 || len(j.Damaged()) != 0 {
			t.Errorf("%d messages, damage %v", n, j.Damaged())
		}
		j.Close()
	}
	for _, p := range append(dirs, files...) {
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
}

// A log that is there twice, say as somebody's copy, lists its messages once, and
// none of them comes back once it was deleted.
func TestSameIDTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{})
	ids := storeSome(t, j, 3, 1000)
	j.Close()
	origin := filepath.Dir(segmentsOf(t, dir)[0])
	if err := os.CopyFS(filepath.Join(dir, strings.Repeat("0", 32)), os.DirFS(origin)); err != nil {
		t.Fatal(err)
	}
	j = openDir(t, dir, Options{})
	if n := len(j.List("mbx-1")); n != 3 || len(j.Damaged()) > 0 {
		t.Errorf("%d messages, damage %v", n, j.Damaged())
	}
	if err := j.Delete(ids...); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if n := len(j.List("mbx-1")); n != 0 {
			t.Fatalf("%d messages are back", n)
		}
		j.Close()
		j = openDir(t, dir, Options{})
	}
}

// Damage in front of what is known to be flushed is damage, after a crash too.
func TestDamageBeforeACrash(t *testing.T) {
	t.Parallel()
	for _, byTombstone := range []bool{false, true} {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		j, err := Open("journal", Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		ids := storeSome(t, j, 1, 100)
		if byTombstone {
			if err := j.Delete(ids...); err != nil {
				t.Fatal(err)
			}
		} else {
			storeSome(t, j, 1, 100)
		}
		path := filepath.Join("journal", j.origin, "00000001"+segmentSuffix)
		disk.Crash()
		f, err := disk.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte("zz"), 50)
		k, err := Open("journal", Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		if d := k.Damaged(); len(d) != 1 || d[0].Offset != 0 {
			t.Errorf("tombstone %v: damage %v", byTombstone, d)
		}
		k.Close()
		j.Close()
	}
}

// A body file that is missing or has another length is damage.
func TestDamagedBodyFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{InlineMax: 100})
	ids := storeSome(t, j, 4, 1000)
	j.Close()
	bodies := filepath.Join(filepath.Dir(segmentsOf(t, dir)[0]), bodiesDir)
	name := func(i int) string { return filepath.Join(bodies, ids[i].String()) }
	rewrite(t, name(1), func(b []byte) []byte { return b[:999] })
	rewrite(t, name(2), func(b []byte) []byte { return append(b, 0) })
	if err := os.Remove(name(3)); err != nil {
		t.Fatal(err)
	}
	j = openDir(t, dir, Options{})
	if d := j.Damaged(); len(d) != 1 || d[0].File != name(3) {
		t.Errorf("damage %v", d)
	}
	for i, id := range ids {
		if _, err := load(j, id); errors.Is(err, ErrDamaged) != (i > 0) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if n := len(j.List("mbx-1")); n != 4 {
		t.Errorf("%d listed", n)
	}
	if err := j.Delete(ids...); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(bodies); len(left) != 0 {
		t.Errorf("bodies of deleted messages: %v", left)
	}
}

// The records of an origin are numbered from 1 without a gap, marks included.
func TestSequence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j := openDir(t, dir, Options{SegmentSize: 3000, CompactRate: -1})
	ids := storeSome(t, j, 10, 1000)
	if err := j.Delete(ids[2:5]...); err != nil {
		t.Fatal(err)
	}
	storeSome(t, j, 2, 1000)
	j.Close()
	want := uint64(1)
	for _, name := range segmentsOf(t, dir) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		records, bad, _, err := scan(bytes.NewReader(b), int64(len(b)))
		if err != nil || len(bad) > 0 || !records[len(records)-1].endMark() {
			t.Fatalf("%v %v", bad, err)
		}
		for _, r := range records {
			got := binary.BigEndian.Uint64(b[r.at+prefixSize:])
			if got != want {
				t.Errorf("%s at %d: number %d, want %d", name, r.at, got, want)
			}
			want++
		}
	}
}
