package journal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/disk/disktest"
)

// flip changes one octet of a file behind the journal's back.
func flip(t *testing.T, d *disktest.Disk, name string, at int64) {
	t.Helper()
	if !d.Change(name, func(b []byte) []byte { b[at] ^= 1; return b }) {
		t.Fatalf("no file %s", name)
	}
}

// Verify finds a changed octet wherever it is, says so once, and passes over nothing.
func TestVerify(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	var told []ID
	var mu sync.Mutex
	j, err := Open("journal", Options{FS: disk, InlineMax: 500, Reserve: 1, OnDamage: func(d Damage) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, d.ID)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	small, large := storeSome(t, j, 4, 400), storeSome(t, j, 4, 600_000)
	e := func(id ID) *entry { return j.entry(id) }
	header, body, file, cut := small[1], small[2], large[1], large[2]
	flip(t, disk, e(header).seg.path, e(header).bodyAt()-20)
	flip(t, disk, e(body).seg.path, e(body).bodyAt()+399)
	flip(t, disk, j.bodyPath(e(file)), 599_999)
	f, err := disk.Open(j.bodyPath(e(cut)))
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(1000)
	want := map[ID]bool{header: true, body: true, file: true, cut: true}
	for range 2 {
		got, all := map[ID]bool{}, 0
		if err := j.Verify(t.Context(), func(m Meta, err error) {
			if all++; err != nil {
				got[m.ID] = true
				if !errors.Is(err, ErrDamaged) {
					t.Error(err)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		if all != 8 || !maps.Equal(got, want) {
			t.Errorf("%d verified, damaged %v", all, got)
		}
	}
	if len(told) != 4 || len(j.Damaged()) != 4 {
		t.Errorf("told of %v, damage %v", told, j.Damaged())
	}
	// The octets are known to be good though the record in front of them is not.
	if _, err := load(j, header); err != nil {
		t.Error(err)
	}
	good := j.NewBody(body)
	rng := rand.New(rand.NewPCG(1, 1))
	text(rng, 400)
	text(rng, 400)
	good.Write(text(rng, 400))
	if err := j.Replace(body, good); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete(file); err != nil {
		t.Fatal(err)
	}
	if err := j.Evict(cut); err != nil {
		t.Fatal(err)
	}
	if d := j.Damaged(); len(d) != 1 || d[0].ID != header {
		t.Errorf("damage after repair: %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	if err := j.Verify(ctx, func(Meta, error) { n++; cancel() }); !errors.Is(err, context.Canceled) || n != 1 {
		t.Errorf("after the end of its context: %v, %d verified", err, n)
	}
}

// A body file is checked as it is read, in whatever steps.
func TestReadingChecksABodyFile(t *testing.T) {
	t.Parallel()
	for _, bad := range []bool{false, true} {
		for what, read := range map[string]func(io.ReaderAt, []byte) error{
			"in order": func(r io.ReaderAt, b []byte) error {
				for at := 0; at < len(b); at += 700 {
					if _, err := r.ReadAt(b[at:min(at+700, len(b))], int64(at)); err != nil && err != io.EOF {
						return err
					}
				}
				return nil
			},
			"end first, then overlapping": func(r io.ReaderAt, b []byte) error {
				if _, err := r.ReadAt(b[4000:], 4000); err != nil && err != io.EOF {
					return err
				}
				for at := 0; at < len(b); at += 500 {
					if _, err := r.ReadAt(b[at:min(at+900, len(b))], int64(at)); err != nil && err != io.EOF {
						return err
					}
				}
				return nil
			},
		} {
			disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
			j, err := Open("journal", Options{FS: disk, InlineMax: 500, Reserve: 1})
			if err != nil {
				t.Fatal(err)
			}
			id := storeSome(t, j, 1, 5000)[0]
			if bad {
				flip(t, disk, j.bodyPath(j.entry(id)), 10)
			}
			r, err := j.Open(id)
			if err != nil {
				t.Fatal(err)
			}
			if err := read(r, make([]byte, 5000)); errors.Is(err, ErrDamaged) != bad {
				t.Errorf("%s, bad %v: %v", what, bad, err)
			}
			if len(j.Damaged()) > 0 != bad {
				t.Errorf("%s: damage %v", what, j.Damaged())
			}
			r.Close()
			j.Close()
		}
	}
}

// The scrubber finds what nobody reads, at its time and rate.
func TestScrub(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		found := make(chan Damage, 10)
		j, err := Open("journal", Options{FS: disk, InlineMax: 500, Reserve: 1, ScrubEvery: time.Hour, ScrubRate: 1000, OnDamage: func(d Damage) { found <- d }})
		if err != nil {
			t.Fatal(err)
		}
		large := storeSome(t, j, 1, 100_000)[0]
		small := storeSome(t, j, 1, 100)[0]
		flip(t, disk, j.bodyPath(j.entry(large)), 10)
		flip(t, disk, j.entry(small).seg.path, j.entry(small).bodyAt())
		start := time.Now()
		got := []ID{(<-found).ID, (<-found).ID}
		if !slices.Contains(got, large) || !slices.Contains(got, small) {
			t.Errorf("found %v", got)
		}
		if d := time.Since(start); d < time.Hour+100*time.Second || d > time.Hour+200*time.Second {
			t.Errorf("after %v", d)
		}
		time.Sleep(2 * time.Hour)
		if len(found) > 0 {
			t.Error("told again")
		}
		j.Close()
	})
}

// Low warns first, Room refuses later.
func TestLow(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, Reserve: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	for free, want := range map[int64][2]bool{4000: {false, true}, 3999: {true, true}, 1000: {true, true}, 999: {true, false}} {
		disk.SetFree(free)
		if got := [2]bool{j.Low(), j.Room(0) == nil}; got != want {
			t.Errorf("%d free: low and room are %v, want %v", free, got, want)
		}
	}
}

// Too many open files is no damage.
func TestNoFilesLeft(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, InlineMax: 500, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	id := storeSome(t, j, 1, 1000)[0]
	disk.Fail(func(op, _ string) error {
		if op == "open" {
			return syscall.EMFILE
		}
		return nil
	})
	if _, err := j.Open(id); !errors.Is(err, syscall.EMFILE) || errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if err := j.Verify(t.Context(), func(Meta, error) { t.Error("verified") }); !errors.Is(err, syscall.EMFILE) {
		t.Error(err)
	}
	if d := j.Damaged(); len(d) > 0 {
		t.Error(d)
	}
}

// Replace mends the record as well as the octets, in one file or another.
func TestReplaceMendsTheRecord(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		opt := Options{FS: disk, InlineMax: 500, Reserve: 1, CompactRate: -1}
		j, err := Open("journal", opt)
		if err != nil {
			t.Fatal(err)
		}
		id := storeSome(t, j, 1, 5000)[0]
		sealed, err := load(j, id)
		if err != nil {
			t.Fatal(err)
		}
		if restart {
			j.Close()
			if j, err = Open("journal", opt); err != nil {
				t.Fatal(err)
			}
		}
		flip(t, disk, j.entry(id).seg.path, j.entry(id).bodyAt()-20)
		verify := func() (bad int) {
			if err := j.Verify(t.Context(), func(_ Meta, err error) {
				if err != nil {
					bad++
				}
			}); err != nil {
				t.Fatal(err)
			}
			return bad
		}
		if n := verify(); n != 1 {
			t.Fatalf("%d damaged", n)
		}
		for _, full := range []bool{true, false} {
			b := j.NewBody(id)
			b.Write(sealed)
			disk.Fail(func(op, name string) error {
				if full && op == "write" && isSegment(filepath.Base(name)) {
					return syscall.ENOSPC
				}
				return nil
			})
			if err := j.Replace(id, b); errors.Is(err, ErrDiskFull) != full {
				t.Fatal(err)
			}
			b.Discard()
			if got, err := load(j, id); err != nil || !bytes.Equal(got, sealed) {
				t.Errorf("restart %v, full %v: %v", restart, full, err)
			}
		}
		if n := verify(); n != 0 || len(j.Damaged()) > 0 {
			t.Errorf("restart %v: %d damaged, %v", restart, n, j.Damaged())
		}
		j.Close()
	}
}
