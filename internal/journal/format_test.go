package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"msgw/internal/disk/disktest"
)

var update = flag.Bool("update", false, "write new test vectors")

// vector compares octets with those in testdata, which every later msgw must read.
func vector(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		var b strings.Builder
		for line := range slices.Chunk(got, 40) {
			b.WriteString(hex.EncodeToString(line) + "\n")
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != strings.Join(strings.Fields(string(stored)), "") {
		t.Errorf("format of %s changed; got\n%x", name, got)
	}
}

func vectorMeta() Meta {
	return Meta{ID: ID{0: 1, 15: 2}, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Unix(1_700_000_000, 5).UTC(),
		Trace: 100, Octets: 2000, BareLFs: 2, Sealed: 4, SHA256: [32]byte{1, 2, 3}, Flags: EightBit | BareLF}
}

// What was added to the format: generations, marked and copied tombstones, side files,
// and the form in which a site tells another of a message.
func TestVectorsOfLaterForms(t *testing.T) {
	t.Parallel()
	m := vectorMeta()
	h, err := messageHeader(1, m)
	if err != nil {
		t.Fatal(err)
	}
	at := m.Received
	kept := []keptTomb{{ID{3}, at, tombAborted}, {ID{4}, at.Add(time.Second), tombAborted}}
	b := appendRecord(nil, prefix{kind: kindMessage, flags: m.Flags, generation: 7}, h, []byte("body"))
	b = appendRecord(b, prefix{kind: kindTombstone, flags: tombAborted, durable: 160, generation: 7}, tombstoneHeader(2, at, []ID{{3}}), nil)
	b = appendRecord(b, prefix{kind: kindTombstone, flags: tombEvicted, durable: 240, generation: 7}, tombstoneHeader(3, at, []ID{{5}}), nil)
	b = appendRecord(b, prefix{kind: kindCopied, flags: tombAborted, durable: 320, generation: 7}, copiedHeader(4, kept), nil)
	b = appendRecord(b, prefix{kind: kindTombstone, durable: 424, generation: 7}, tombstoneHeader(5, at, nil), nil)
	vector(t, "records-v1b.hex", b)
	records, bad, _, err := scan(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(bad) > 0 || len(records) != 5 {
		t.Fatalf("%v %v %v", records, bad, err)
	}
	if r := records[0]; r.meta != m || r.generation != 7 {
		t.Errorf("message: %+v", r)
	}
	if r := records[3]; !slices.Equal(r.ids, []ID{{3}, {4}}) || !r.timeOf(1).Equal(kept[1].at) || r.flags != tombAborted || r.endMark() {
		t.Errorf("copied tombstones: %+v", r)
	}
	if !records[4].endMark() {
		t.Error("no end mark")
	}

	var headers []byte
	for _, r := range records {
		headers = binary.BigEndian.AppendUint64(headers, uint64(r.at))
		headers = append(headers, b[r.at:r.bodyAt]...)
	}
	origin := "00112233445566778899aabbccddeeff"
	side, err := appendSide(nil, origin, 3, int64(len(b)), len(records), headers)
	if err != nil {
		t.Fatal(err)
	}
	vector(t, "side-v1.hex", side)
	again, err := parseSide(side, origin, 3, int64(len(b)))
	if err != nil || len(again) != 5 || again[0].meta != m || again[3].bodyAt != records[3].bodyAt {
		t.Errorf("%+v %v", again, err)
	}

	told, err := AppendMeta([]byte("before"), m)
	if err != nil {
		t.Fatal(err)
	}
	vector(t, "meta-v1.hex", told[6:])
}

func TestMetaInTransit(t *testing.T) {
	t.Parallel()
	m := vectorMeta()
	m.Flags |= bodyInFile
	b, err := AppendMeta(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	m.Flags &^= bodyInFile
	if got, err := ParseMeta(b); err != nil || got != m {
		t.Errorf("%+v %v", got, err)
	}
	for i := range b {
		if _, err := ParseMeta(b[:i]); err == nil {
			t.Errorf("%d octets of %d were taken", i, len(b))
		}
	}
	for i, change := range map[int]byte{0: 2, 2: byte(bodyInFile), 3: 1, 3 + 36: 0xff, 3 + 52: 0xff} {
		c := bytes.Clone(b)
		if c[i] |= change; c[0] == 3 {
			c[0] = 2
		}
		if _, err := ParseMeta(c); err == nil {
			t.Errorf("octet %d set to %d was taken", i, c[i])
		}
	}
	if _, err := ParseMeta(append(b, 0)); err == nil {
		t.Error("an octet too many was taken")
	}
	for what, bad := range map[string]Meta{"key": {Key: "x"}, "mailbox": {Key: m.Key, Mailbox: strings.Repeat("m", 256)},
		"trace": {Key: m.Key, Trace: 1 << 32}, "bare LFs": {Key: m.Key, BareLFs: 1 << 32}} {
		if _, err := AppendMeta(nil, bad); err == nil {
			t.Errorf("%s: was told", what)
		}
	}
}

func FuzzParseMeta(f *testing.F) {
	b, _ := AppendMeta(nil, vectorMeta())
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMeta(b)
		if err != nil {
			return
		}
		if again, err := AppendMeta(nil, m); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x became %x: %v", b, again, err)
		}
	})
}

func FuzzSide(f *testing.F) {
	h, _ := messageHeader(1, vectorMeta())
	rec := appendRecord(nil, prefix{kind: kindMessage}, h, []byte("body"))
	end := appendRecord(nil, prefix{kind: kindTombstone}, tombstoneHeader(2, time.Unix(0, 0), nil), nil)
	headers := binary.BigEndian.AppendUint64(nil, 0)
	headers = append(headers, rec[:prefixSize+len(h)]...)
	headers = binary.BigEndian.AppendUint64(headers, uint64(len(rec)))
	headers = append(headers, end[:prefixSize+tombstoneSize]...)
	f.Add(headers, uint16(2), uint32(len(rec)+len(end)))
	origin := strings.Repeat("0", 32)
	f.Fuzz(func(t *testing.T, headers []byte, n uint16, size uint32) {
		b, err := appendSide(nil, origin, 1, int64(size), int(n), headers) // with a checksum that fits
		if err != nil {
			t.Fatal(err)
		}
		records, err := parseSide(b, origin, 1, int64(size))
		if err != nil {
			return
		}
		end := int64(0)
		for _, r := range records {
			if r.at != end {
				t.Fatalf("record at %d, the one before ends at %d", r.at, end)
			}
			end += r.size()
		}
		if end != int64(size) || len(records) != int(n) {
			t.Fatalf("%d records of %d octets, want %d of %d", len(records), end, n, size)
		}
	})
}

// The format is for years: these octets must be readable by every later msgw.
func TestVector(t *testing.T) {
	t.Parallel()
	id, err := ParseID("00112233-4455-6677-8899-aabbccddeeff")
	if err != nil || id.String() != "00112233-4455-6677-8899-aabbccddeeff" {
		t.Fatal(id, err)
	}
	m := Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Unix(1_700_000_000, 5).UTC(),
		Trace: 100, Octets: 2000, BareLFs: 2, Sealed: 4, SHA256: [32]byte{1, 2, 3}, Flags: EightBit | BareLF}
	h, err := messageHeader(7, m)
	if err != nil {
		t.Fatal(err)
	}
	b := appendRecord(nil, prefix{kind: kindMessage, flags: m.Flags, durable: 4096}, h, []byte("body"))
	b = appendRecord(b, prefix{kind: kindTombstone, durable: 4300}, tombstoneHeader(8, m.Received, []ID{id}), nil)
	name := filepath.Join("testdata", "records-v1.hex")
	stored, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(b); got != strings.Join(strings.Fields(string(stored)), "") {
		t.Errorf("format changed; got\n%s", got)
	}
	records, bad, durable, err := scan(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(bad) > 0 || len(records) != 2 || durable != 4300 {
		t.Fatalf("%v %v %d %v", records, bad, durable, err)
	}
	if r := records[0]; r.meta != m || r.body != 4 || !wholeBody(r, b) {
		t.Errorf("message: %+v", r)
	}
	if r := records[1]; !slices.Equal(r.ids, []ID{id}) {
		t.Errorf("tombstone: %+v", r)
	}
}

func wholeBody(r scanned, b []byte) bool {
	whole, err := r.bodyWhole(bytes.NewReader(b))
	return whole && err == nil
}

func FuzzScan(f *testing.F) {
	h, _ := messageHeader(1, metaOf(ID{1}, "mbx-1"))
	rec := appendRecord(nil, prefix{kind: kindMessage}, h, []byte("body"))
	f.Add(rec, uint16(3))
	f.Add(append(rec, rec...), uint16(200))
	f.Add([]byte("12345678 msj1"), uint16(0)) // not a multiple of 8, the last octets look like a record
	f.Add([]byte("12345678.msj1"), uint16(0))
	f.Add(append(make([]byte, 40), rec...), uint16(0xffff))
	f.Add(append([]byte("12345678"), rec...), uint16(0))
	f.Add(append([]byte("12345678xxxmsj1x"), rec...), uint16(0))
	f.Add(append(make([]byte, 16), rec...), uint16(searchChunk-8)) // the first of the second chunk
	f.Fuzz(func(t *testing.T, b []byte, before uint16) {
		b = append(bytes.Repeat([]byte{'m'}, int(before)), b...)
		records, _, _, err := scan(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		// The same, slowly: at every eighth octet.
		for at := int64(0); at < int64(len(b)); {
			r, err := readRecord(bytes.NewReader(b), at, int64(len(b)))
			if err != nil {
				at += align
				continue
			}
			if len(records) == 0 || records[0].at != at {
				t.Fatalf("record at %d was passed over", at)
			}
			records, at = records[1:], at+r.size()
		}
		if len(records) > 0 {
			t.Fatalf("a record at %d that is none", records[0].at)
		}
	})
}

// Logs of before there were generations are read as they were meant: any tombstone
// deletes what it names in any origin. What is written now counts for more.
func TestLogsWithoutGenerations(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	ids := []ID{{1}, {2}, {3}}
	at := time.Unix(1_700_000_000, 0)
	write := func(origin string, records ...[]byte) {
		dir := "journal/" + strings.Repeat(origin, 32)
		if err := disk.MkdirAll(dir); err != nil {
			t.Fatal(err)
		}
		f, err := disk.Create(dir + "/00000001.seg")
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt(bytes.Join(records, nil), 0)
		f.Sync()
		for _, d := range []string{".", "journal", dir} {
			disk.SyncDir(d)
		}
	}
	message := func(seq uint64, id ID) []byte {
		m := metaOf(id, "mbx-1")
		m.Sealed, m.SHA256 = 6, sha256.Sum256([]byte("sealed"))
		h, err := messageHeader(seq, m)
		if err != nil {
			t.Fatal(err)
		}
		return appendRecord(nil, prefix{kind: kindMessage}, h, []byte("sealed"))
	}
	write("a", message(1, ids[0]), message(2, ids[1]))
	write("b", appendRecord(nil, prefix{kind: kindTombstone}, tombstoneHeader(1, at, ids[:1]), nil), message(2, ids[2]))
	write("c", appendRecord(nil, prefix{kind: kindTombstone}, tombstoneHeader(1, at, ids[2:]), nil))
	opt := Options{FS: disk, KeepGraves: true, CompactRate: -1}
	for round := range 3 {
		j, err := Open("journal", opt)
		if err != nil {
			t.Fatal(err)
		}
		if l := listed(j); !slices.Equal(l, ids[1:2]) || len(j.Damaged()) > 0 || len(j.Graves()) != 2 {
			t.Fatalf("round %d: listed %v, graves %v, damage %v", round, l, j.Graves(), j.Damaged())
		}
		b := j.NewBody(ids[1])
		b.Write([]byte("sealed"))
		if err := j.Replace(ids[1], b); err != nil {
			t.Fatal(err)
		}
		if err := j.compact(); err != nil {
			t.Fatal(err)
		}
		j.Close()
	}
}

func TestTraceBindingLen(t *testing.T) {
	t.Parallel()
	for _, mailbox := range []string{"", "mbx-2a20342e96294505a35eb5c8364eb67c"} {
		if got, want := TraceBindingLen(mailbox), len(TraceBinding(NewID(), mailbox)); got != want {
			t.Errorf("%q: %d octets, want %d", mailbox, got, want)
		}
	}
}
