package disktest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"msgw/internal/disk"
)

func put(t *testing.T, d disk.FS, name, text string, flush bool) disk.File {
	t.Helper()
	f, err := d.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
	if flush {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func get(d disk.FS, name string) string {
	f, err := d.Open(name)
	if err != nil {
		return "none"
	}
	n, err := f.Size()
	b := make([]byte, n)
	if got, rerr := f.ReadAt(b, 0); err != nil || got < len(b) {
		return fmt.Sprint(err, rerr)
	}
	return string(b)
}

// A power cut takes what was not flushed, or parts of it, and nothing else; each kind of
// loss happens.
func TestCrash(t *testing.T) {
	t.Parallel()
	seen := map[string]map[string]bool{}
	note := func(what, got string) {
		if seen[what] == nil {
			seen[what] = map[string]bool{}
		}
		seen[what][got] = true
	}
	for seed := range uint64(300) {
		d := New(rand.New(rand.NewPCG(seed, 1)))
		if err := d.MkdirAll("a/b"); err != nil {
			t.Fatal(err)
		}
		d.SyncDir("")
		d.SyncDir("a")
		put(t, d, "a/b/kept", "kept", true)
		put(t, d, "a/b/gone", "gone", true)
		put(t, d, "a/b/old", "old", true)
		put(t, d, "a/b/new", "new", true)
		cut := put(t, d, "a/b/cut", "12345678", true)
		put(t, d, "a/b/torn", "abcdefgh", false)
		d.SyncDir("a/b")
		put(t, d, "a/b/late", "late", true)
		d.Remove("a/b/gone")
		d.Rename("a/b/new", "a/b/old")
		cut.Truncate(4)
		f, err := d.Open("a/b/kept")
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte("!"), 4)
		if _, err := f.ReadAt(make([]byte, 5), 0); err != nil {
			t.Error(err)
		}
		snap := d.Snapshot()
		if got := get(d, "a/b/kept"); got != "kept!" {
			t.Errorf("a snapshot changed the disk: %q", got)
		}
		mount := d.Mount()
		for range 2 {
			if d.Crash(); seed%2 == 0 {
				d.Revert(snap)
			}
			for _, name := range []string{"kept", "gone", "old", "new", "cut", "torn", "late"} {
				got := get(d, "a/b/"+name)
				if name == "torn" && strings.HasPrefix(got, "a") && strings.Contains(got, "\x00") && strings.HasSuffix(got, "h") {
					got = "hole"
				}
				note(name, got)
			}
			before := fmt.Sprint(d.Names())
			d.Crash()
			if after := fmt.Sprint(d.Names()); after != before {
				t.Errorf("seed %d: lost what was on stable storage: %s, then %s", seed, before, after)
			}
		}
		if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
			t.Error("an old handle lives")
		}
		if _, err := cut.WriteAt(nil, 0); !errors.Is(err, syscall.EIO) {
			t.Error("an old handle lives")
		}
		if err := mount.Remove("a/b/kept"); !errors.Is(err, syscall.EIO) || get(d, "a/b/kept") == "none" {
			t.Error("a dead machine removed a file")
		}
		if _, err := mount.Free(""); err == nil {
			t.Error("a dead machine was answered")
		}
	}
	for what, want := range map[string][]string{"kept": {"kept", "kept!", "kept\x00"}, "gone": {"gone", "none"}, "old": {"old", "new"}, "new": {"new", "none"},
		"cut": {"1234", "12345678"}, "late": {"late", "none"}, "torn": {"", "abc", "abcdefgh", "\x00\x00\x00\x00efgh", "hole", "ab\x00\x00\x00\x00\x00\x00"}} {
		for _, w := range want {
			if !seen[what][w] {
				t.Errorf("%s: never %q", what, w)
			}
		}
		if what != "torn" && len(seen[what]) != len(want) {
			t.Errorf("%s: %v", what, seen[what])
		}
	}
}

// Faults are what was asked for.
func TestFaults(t *testing.T) {
	t.Parallel()
	d := New(rand.New(rand.NewPCG(1, 1)))
	f := put(t, d, "f", "12345678", true)
	var ops []string
	d.Fail(func(op, name string) error { ops = append(ops, op+" "+name); return syscall.EIO })
	_, e1 := d.Create("x")
	_, e2 := d.Open("f")
	_, e3 := d.ReadDir("")
	n, e4 := f.WriteAt([]byte("abcd"), 0)
	for i, err := range []error{e1, e2, e3, e4, d.MkdirAll("x/y"), d.Rename("f", "g"), d.Remove("f"), d.SyncDir(""), f.Sync(), f.Truncate(1), f.Allocate(9)} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	if want := "create x,open f,readdir ,write f,mkdir x/y,rename g,remove f,syncdir ,sync f,truncate f,allocate f"; strings.Join(ops, ",") != want {
		t.Errorf("%q", ops)
	}
	d.Fail(nil)
	if got, want := get(d, "f"), "abcd"[:n]+"12345678"[n:]; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	d.Unreadable(func(name string, from, to int64) bool { return name == "f" && from < 4 && to > 2 })
	if _, err := f.ReadAt(make([]byte, 2), 0); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadAt(make([]byte, 2), 3); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	d.Before(func(op, name string) {
		if op == "remove" {
			d.Before(nil)
			d.Change("f", func(b []byte) []byte { return append(b, '!') })
			put(t, d, "other", "", false)
		}
	})
	if err := d.Remove("f"); err != nil || !slices.Equal(d.Names(), []string{"other"}) {
		t.Error(err, d.Names())
	}
	if d.Change("f", nil) {
		t.Error("changed what is not there")
	}
}

// It answers as a file system does.
func TestAnswers(t *testing.T) {
	t.Parallel()
	for what, d := range map[string]disk.FS{"simulated": New(rand.New(rand.NewPCG(1, 1))), "machine": below{disk.OS{}, t.TempDir()}} {
		if err := d.MkdirAll("dir/sub"); err != nil {
			t.Fatal(what, err)
		}
		f := put(t, d, "dir/f", "12345678", true)
		_, exists := d.Create("dir/f")
		_, missing := d.Create("no/f")
		_, none := d.Open("dir/none")
		_, noDir := d.ReadDir("none")
		for i, e := range [][2]error{{exists, fs.ErrExist}, {missing, fs.ErrNotExist}, {none, fs.ErrNotExist}, {noDir, fs.ErrNotExist},
			{d.Remove("dir"), syscall.ENOTEMPTY}, {d.Remove("none"), fs.ErrNotExist}, {d.Rename("none", "x"), fs.ErrNotExist},
			{d.SyncDir("none"), fs.ErrNotExist}, {d.MkdirAll("dir/f/x"), syscall.ENOTDIR}} {
			if !errors.Is(e[0], e[1]) {
				t.Errorf("%s: %d: %v, want %v", what, i, e[0], e[1])
			}
		}
		if err := d.Rename("dir/f", "dir/sub"); err == nil {
			t.Errorf("%s: a file took a directory's place", what)
		}
		if err := errors.Join(f.Truncate(4), f.Allocate(6), f.Sync(), d.SyncDir("dir"), d.MkdirAll("dir/sub")); err != nil {
			t.Error(what, err)
		}
		if got := get(d, "dir/f"); got != "1234\x00\x00" {
			t.Errorf("%s: %q", what, got)
		}
		put(t, d, "dir/g", "g", false)
		if err := d.Rename("dir/g", "dir/f"); err != nil || get(d, "dir/f") != "g" {
			t.Errorf("%s: %v, %q", what, err, get(d, "dir/f"))
		}
		es, err := d.ReadDir("dir")
		if err != nil || len(es) != 2 || es[0].Name() != "f" || es[0].IsDir() || es[1].Name() != "sub" || !es[1].IsDir() || !es[1].Type().IsDir() {
			t.Errorf("%s: %v %v", what, es, err)
		}
		if n, err := d.Free("dir"); err != nil || n <= 0 {
			t.Error(what, n, err)
		}
		f.Close()
		if err := f.Sync(); err == nil {
			t.Errorf("%s: flushed what is closed", what)
		}
		if err := errors.Join(d.Remove("dir/f"), d.Remove("dir/sub"), d.Remove("dir")); err != nil {
			t.Error(what, err)
		}
	}
}

// below is a file system below a directory of another.
type below struct {
	disk.FS
	dir string
}

func (b below) at(name string) string                     { return b.dir + "/" + name }
func (b below) MkdirAll(dir string) error                 { return b.FS.MkdirAll(b.at(dir)) }
func (b below) Create(name string) (disk.File, error)     { return b.FS.Create(b.at(name)) }
func (b below) Open(name string) (disk.File, error)       { return b.FS.Open(b.at(name)) }
func (b below) Rename(from, to string) error              { return b.FS.Rename(b.at(from), b.at(to)) }
func (b below) Remove(name string) error                  { return b.FS.Remove(b.at(name)) }
func (b below) ReadDir(dir string) ([]fs.DirEntry, error) { return b.FS.ReadDir(b.at(dir)) }
func (b below) SyncDir(dir string) error                  { return b.FS.SyncDir(b.at(dir)) }
func (b below) Free(dir string) (int64, error)            { return b.FS.Free(b.at(dir)) }
