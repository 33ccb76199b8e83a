package shadow

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"msgw/internal/journal"
)

// spoil changes one octet of message n below dir, wherever it lies.
func spoil(t *testing.T, dir string, n uint64, size int) {
	t.Helper()
	content, found := octets(n, size), 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if i := bytes.Index(b, content); i >= 0 {
			found++
			b[i+size/2] ^= 1
			return os.WriteFile(path, b, 0o600)
		}
		return nil
	})
	if err != nil || found != 1 {
		t.Fatalf("message %d was found %d times, %v", n, found, err)
	}
}

func (p *pair) verify(j *journal.Journal) (damaged int) {
	p.t.Helper()
	if err := j.Verify(p.t.Context(), func(_ journal.Meta, err error) {
		if err != nil {
			damaged++
		}
	}); err != nil {
		p.t.Fatal(err)
	}
	return damaged
}

// What is damaged at one site is repaired from the other, whichever found it and however
// large it is.
func TestRepair(t *testing.T) {
	for _, size := range []int{1000, 600_000} {
		for _, side := range []string{"owner", "holder"} {
			t.Run(fmt.Sprintf("%d octets at the %s", size, side), func(t *testing.T) {
				story(t, func(t *testing.T, p *pair) {
					p.becomes(Sync, 5*time.Second)
					id := p.must(1, size)
					j, dir := p.own, p.ownerDir
					if side == "holder" {
						j, dir = p.held, p.holderDir
					}
					spoil(t, dir, 1, size)
					if n := p.verify(j); n != 1 {
						t.Fatalf("%d messages are damaged", n)
					}
					p.ship.Repair()
					p.within(2*time.Minute, "it is repaired", func() error {
						if n := len(j.Damaged()); n > 0 {
							return fmt.Errorf("%d damaged", n)
						}
						return nil
					})
					holds(t, p.own, id, 1, size)
					holds(t, p.held, id, 1, size)
					if n := p.verify(j); n != 0 {
						t.Errorf("%d messages are damaged after the repair", n)
					}
					p.becomes(Sync, 2*time.Minute)
					if r := p.ship.Report(); r.Repaired != 1 || r.Damaged != 0 {
						t.Errorf("%+v", r)
					}
				})
			})
		}
	}
}

// What is damaged at both sites has no sound copy: that is no SYNC, and neither record is
// touched.
func TestRepairWithoutASoundCopy(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		id := p.must(1, 1000)
		spoil(t, p.ownerDir, 1, 1000)
		spoil(t, p.holderDir, 1, 1000)
		p.verify(p.own)
		p.verify(p.held)
		p.ship.Repair()
		p.becomes(CatchUp, 2*time.Minute)
		if r := p.ship.Report(); r.Damaged != 1 || r.Repaired != 0 {
			t.Errorf("%+v", r)
		}
		for name, j := range map[string]*journal.Journal{"owner": p.own, "holder": p.held} {
			if _, ok := j.Has(id); !ok {
				t.Errorf("%s has dropped it", name)
			}
			if r, err := j.Open(id); !errors.Is(err, journal.ErrDamaged) {
				t.Errorf("%s: open: %v", name, err)
				r.Close()
			}
		}
		// New mail goes on having two copies.
		if _, err := p.give(true, 2, 1000); err != nil {
			t.Error(err)
		}
	})
}
