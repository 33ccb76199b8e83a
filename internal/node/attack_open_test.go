//go:build attack

package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"msgw/raftstore"
)

// pair is two sites of which the first one was copied when it was alone.
func pair(t *testing.T, dir string) (w *wires, a, b *site, one, two *Config, copied string) {
	t.Helper()
	w = &wires{listeners: map[string]*pipeListener{}}
	one, two = siteConfig(dir, 1), siteConfig(dir, 2)
	if err := Init(one, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
		t.Fatal(err)
	}
	a = startSite(t, w, one)
	leads := func() error { _, err := a.store.Confirm(); return err }
	within(t, time.Hour, "it leads", leads)
	a.stop()
	copied = filepath.Join(dir, "copy")
	if err := os.CopyFS(copied, os.DirFS(one.State)); err != nil {
		t.Fatal(err)
	}
	a = startSite(t, w, one)
	within(t, time.Hour, "it leads", leads)
	if err := joinSite(a, two); err != nil {
		t.Fatal(err)
	}
	b = startSite(t, w, two)
	within(t, time.Hour, "both vote", func() error { return votes(b, "msgw1", "msgw2") })
	return w, a, b, one, two, copied
}

func votes(s *site, names ...string) error {
	if v := s.store.Status().Voters; !slices.Equal(v, names) {
		return fmt.Errorf("voters %v", v)
	}
	return nil
}

// A site that is set back to before the other one joined goes on alone under the server
// id that it had, in the same epoch.
func TestOpenSetBackToBeforeTheJoin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, a, b, one, _, copied := pair(t, dir)
		defer func() { a.stop(); b.stop() }()
		a.stop()
		back := *one
		back.State = copied
		a = startSite(t, w, &back)
		time.Sleep(3 * time.Hour)
		if a.store.Renounced() == nil {
			t.Error("msgw1 was set back and does not know it")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if i, err := a.store.Propose(ctx, raftstore.SetWeight{Node: "msgw1", Weight: 9}); err == nil {
			t.Errorf("a change was made by a node that was set back, at %d", i)
		}
	})
}

// The same, set back to when it had gone on alone in a new epoch and the other one was not
// back yet.
func TestOpenSetBackToBeforeTheReturn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, a, b, one, two, _ := pair(t, dir)
		defer func() { a.stop(); b.stop() }()
		b.stop()
		within(t, time.Hour, "no quorum", func() error {
			if a.store.Status().Quorum {
				return fmt.Errorf("there is a quorum")
			}
			return nil
		})
		if err := a.store.Recover(t.Context(), "msgw2 is gone"); err != nil {
			t.Fatal(err)
		}
		a.stop()
		copied := filepath.Join(dir, "copy2")
		if err := os.CopyFS(copied, os.DirFS(one.State)); err != nil {
			t.Fatal(err)
		}
		a = startSite(t, w, one)
		b = startSite(t, w, two)
		within(t, 10*time.Hour, "msgw2 is back", func() error { return votes(b, "msgw1", "msgw2") })
		a.stop()
		back := *one
		back.State = copied
		a = startSite(t, w, &back)
		made := 0
		for range 60 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if _, err := a.store.Propose(ctx, raftstore.SetWeight{Node: "msgw1", Weight: uint32(made + 2)}); err == nil {
				made++
			}
			cancel()
			time.Sleep(time.Minute)
		}
		t.Logf("%d changes were made, renounced %+v, epochs %s and %s", made, a.store.Renounced(), a.store.Epoch(), b.store.Epoch())
		if made > 0 && a.store.State().Nodes["msgw1"].Weight == 1 {
			t.Errorf("%d changes were reported as made by a node that was set back, and are gone", made)
		}
	})
}

// A site that yielded can break the glass itself: the token that it gave out is worth
// nothing, and both go on.
func TestOpenRecoverAfterYield(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		_, a, b, _, _, _ := pair(t, dir)
		defer func() { a.stop(); b.stop() }()
		b.stop() // as if the line were cut
		within(t, time.Hour, "no quorum", func() error {
			if a.store.Status().Quorum {
				return fmt.Errorf("there is a quorum")
			}
			return nil
		})
		if _, err := (operator{a.Node}).Yield(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := a.store.Recover(t.Context(), "the other one does not answer"); err == nil {
			t.Errorf("a node that yielded votes again, in epoch %s", a.store.Epoch())
		}
	})
}
