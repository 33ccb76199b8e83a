package journal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"msgw/internal/disk/disktest"
)

func prepare(t *testing.T, j *Journal, id ID, sealed []byte) *Prepared {
	t.Helper()
	b := j.NewBody(id)
	b.Write(sealed)
	p, err := j.Prepare(Message{metaOf(id, "mbx-1"), b})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func listed(j *Journal) []ID {
	var ids []ID
	for _, m := range j.List("mbx-1") {
		ids = append(ids, m.ID)
	}
	return ids
}

// A prepared message is found and not listed; List shows it, Abort ends it for good.
func TestPrepare(t *testing.T) {
	t.Parallel()
	for _, size := range []int{50, 5000} {
		disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
		j, err := Open("journal", Options{FS: disk, InlineMax: 100, Reserve: 1, KeepGraves: true})
		if err != nil {
			t.Fatal(err)
		}
		shown, aborted, left := NewID(), NewID(), NewID()
		sealed := make([]byte, size)
		a, b := prepare(t, j, shown, sealed), prepare(t, j, aborted, sealed)
		prepare(t, j, left, sealed)
		for _, id := range []ID{shown, aborted, left} {
			if m, ok := j.Has(id); !ok || m.ID != id || m.Sealed != int64(size) {
				t.Errorf("Has: %v %v", m, ok)
			}
			if _, err := load(j, id); err != nil {
				t.Error(err)
			}
			if err := store(j, id, "mbx-1", sealed); !errors.Is(err, ErrHeld) {
				t.Errorf("stored under the id of a prepared message: %v", err)
			}
		}
		told := 0
		j.All(func(Meta) bool { told++; return true })
		if len(listed(j)) != 0 || len(j.Waiting()) != 0 || told != 0 || j.Summary() != [256]Bucket{} {
			t.Error("a prepared message is visible")
		}
		disk.Fail(func(op, _ string) error {
			if op == "write" {
				return syscall.ENOSPC
			}
			return nil
		})
		if err := b.Abort(); !errors.Is(err, ErrDiskFull) {
			t.Error(err)
		}
		disk.Fail(nil)
		if _, ok := j.Has(aborted); !ok {
			t.Error("an abort that failed took the message away")
		}
		if err := b.Abort(); err != nil {
			t.Fatal(err)
		}
		if _, ok := j.Has(aborted); ok {
			t.Error("an aborted message is still held")
		}
		if g := j.Graves(); len(g) != 1 || g[0].ID != aborted || !g[0].Aborted {
			t.Errorf("graves %v", g)
		}
		b.List()
		a.List()
		a.List()
		if l := listed(j); !slices.Equal(l, []ID{shown}) {
			t.Errorf("listed %v", l)
		}
		disk.Crash()
		k, err := Open("journal", Options{FS: disk, KeepGraves: true})
		if err != nil {
			t.Fatal(err)
		}
		if l := listed(k); len(l) != 2 || slices.Contains(l, aborted) {
			t.Errorf("after a crash: %v", l)
		}
		if g := k.Graves(); len(g) != 1 || g[0].ID != aborted || !g[0].Aborted {
			t.Errorf("graves after a crash %v", g)
		}
		j.Close()
		k.Close()
	}
}

// The octets of a copy are those that it states, or it is refused and leaves nothing.
func TestRestore(t *testing.T) {
	t.Parallel()
	for _, size := range []int{50, 5000} {
		dir := t.TempDir()
		j := openDir(t, dir, Options{InlineMax: 100, KeepGraves: true})
		m, sealed := metaOf(NewID(), "mbx-1"), bytes.Repeat([]byte("x"), size)
		m.SHA256, m.Sealed, m.Flags = sha256.Sum256(sealed), int64(size), EightBit
		try := func(m Meta, sealed []byte) error {
			b := j.NewBody(m.ID)
			defer b.Discard()
			b.Write(sealed)
			return j.Restore(m, b)
		}
		short, other, none := m, m, m
		short.Sealed--
		other.SHA256[0]++
		none.SHA256 = [32]byte{}
		for i, bad := range []Meta{short, other, none} {
			if err := try(bad, sealed); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d: %v", i, err)
			}
		}
		if err := try(m, sealed); err != nil {
			t.Fatal(err)
		}
		got, ok := j.Has(m.ID)
		got.Flags &^= bodyInFile
		if !ok || got != m {
			t.Errorf("%+v\nwant %+v", got, m)
		}
		if err := j.Delete(m.ID); err != nil {
			t.Fatal(err)
		}
		if err := try(m, sealed); !errors.Is(err, ErrDeleted) {
			t.Errorf("restored over its grave: %v", err)
		}
		j.Forget(m.ID)
		if err := try(m, sealed); err != nil {
			t.Error(err)
		}
		for range 3 { // the tombstone is on the disk, before the copy
			j.Close()
			j = openDir(t, dir, Options{InlineMax: 100, KeepGraves: true})
			if _, err := load(j, m.ID); err != nil || len(listed(j)) != 1 || len(j.Graves()) != 0 {
				t.Errorf("%v, graves %v", err, j.Graves())
			}
		}
	}
}

// Good octets take the place of bad ones, whatever process and size they had.
func TestReplaceAndEvict(t *testing.T) {
	t.Parallel()
	for _, inlineBefore := range []bool{true, false} {
		for _, inlineNow := range []bool{true, false} {
			for _, sameProcess := range []bool{true, false} {
				for _, evict := range []bool{true, false} {
					dir := t.TempDir()
					limit := map[bool]int{true: 10_000, false: 100}
					j := openDir(t, dir, Options{InlineMax: limit[inlineBefore]})
					id, sealed := NewID(), bytes.Repeat([]byte("good"), 250)
					if err := store(j, id, "mbx-1", sealed); err != nil {
						t.Fatal(err)
					}
					m, _ := j.Has(id)
					spoil := func() {
						j.mu.Lock()
						path, at := j.bodyPath(j.entry(id)), int64(10)
						if inlineBefore {
							path, at = j.entry(id).seg.path, j.entry(id).bodyAt()+10
						}
						j.mu.Unlock()
						f, err := os.OpenFile(path, os.O_RDWR, 0)
						if err != nil {
							t.Fatal(err)
						}
						f.WriteAt([]byte("bad!"), at)
						f.Close()
					}
					spoil()
					if !sameProcess {
						j.Close()
						j = openDir(t, dir, Options{InlineMax: limit[inlineNow]})
					} else {
						j.opt.InlineMax = limit[inlineNow]
					}
					if _, err := load(j, id); err == nil {
						t.Fatal("not spoilt")
					}
					bad := j.NewBody(id)
					bad.Write(make([]byte, 1000))
					if err := j.Replace(id, bad); !errors.Is(err, ErrDamaged) {
						t.Errorf("replaced with something else: %v", err)
					}
					b := j.NewBody(id)
					b.Write(sealed)
					if evict {
						if err := j.Evict(id); err != nil {
							t.Fatal(err)
						}
						if _, ok := j.Has(id); ok {
							t.Error("evicted and held")
						}
						m.Flags &^= bodyInFile
						if err := j.Restore(m, b); err != nil {
							t.Fatal(err)
						}
					} else if err := j.Replace(id, b); err != nil {
						t.Fatal(err)
					}
					b.Discard()
					bodies, _ := filepath.Glob(filepath.Join(dir, "*", bodiesDir, "*"))
					if (len(bodies) == 0) != inlineNow || len(bodies) > 1 {
						t.Errorf("inline %v, %v; same process %v; evict %v: bodies %v", inlineBefore, inlineNow, sameProcess, evict, bodies)
					}
					for range 3 {
						if got, err := load(j, id); err != nil || !bytes.Equal(got, sealed) || len(listed(j)) != 1 || len(j.Damaged()) > 0 {
							t.Errorf("inline %v, %v; same process %v; evict %v: %v, damage %v", inlineBefore, inlineNow, sameProcess, evict, err, j.Damaged())
						}
						j.Close()
						j = openDir(t, dir, Options{InlineMax: limit[inlineNow]})
					}
					if err := j.Delete(id); err != nil {
						t.Fatal(err)
					}
					for range 2 {
						j.Close()
						j = openDir(t, dir, Options{})
						if len(listed(j)) != 0 {
							t.Error("back after its deletion")
						}
					}
					j.Close()
					if left, _ := os.ReadDir(dir); len(left) != 0 {
						t.Errorf("left on disk: %v", left)
					}
				}
			}
		}
	}
}

// Nobody stores a body under an id while the file of the deleted one is still to go.
func TestNoBodyBeforeTheOldIsGone(t *testing.T) {
	t.Parallel()
	disk := disktest.New(rand.New(rand.NewPCG(1, 1)))
	j, err := Open("journal", Options{FS: disk, InlineMax: 100, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	id := storeSome(t, j, 1, 1000)[0]
	m, _ := j.Has(id)
	sealed, err := load(j, id)
	if err != nil {
		t.Fatal(err)
	}
	restore := func() error {
		b := j.NewBody(id)
		defer b.Discard()
		if _, err := b.Write(sealed); err != nil {
			return err
		}
		return j.Restore(m, b)
	}
	var tried atomic.Bool
	disk.Before(func(op, name string) {
		if op == "remove" && name == j.dir+"/"+j.origin+"/bodies/"+id.String() && !tried.Swap(true) {
			if err := restore(); !errors.Is(err, ErrHeld) {
				t.Errorf("restored while the old file is there: %v", err)
			}
		}
	})
	if err := j.Evict(id); err != nil || !tried.Load() {
		t.Fatal(err)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if _, err := load(j, id); err != nil {
		t.Error(err)
	}
}
