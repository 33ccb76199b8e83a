package shadow

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/journal"
)

// story runs a test in virtual time: waits cost nothing, and are exact.
func story(t *testing.T, f func(t *testing.T, p *pair)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.startHolder()
		p.startOwner()
		f(t, p)
	})
}

func TestBothSitesHoldWhatIsSafe(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		for n, size := range []int{0, 1, 75_000, inlineMax, inlineMax + 1, 3_000_000} {
			id := p.must(uint64(n), size)
			holds(t, p.own, id, uint64(n), size)
			holds(t, p.held, id, uint64(n), size)
		}
		if r := p.ship.Report(); r.State != Sync || r.Single != 0 {
			t.Errorf("%+v", r)
		}
		if got := len(p.own.List("mbx-1")); got != 6 {
			t.Errorf("%d messages are listed, expected 6", got)
		}
		if got := p.holder.List("mbx-1"); len(got) != 0 {
			t.Errorf("the holder lists %d messages that it has not adopted", len(got))
		}
	})
}

func TestRefusedLinkDegradesWithinTwoSeconds(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(refused)
		start := time.Now()
		id := p.must(1, 75_000)
		large := p.must(2, 1_000_000)
		if d := time.Since(start); d > 2500*time.Millisecond {
			t.Errorf("taken after %v", d)
		}
		if r := p.ship.Report(); r.State != Degraded || r.Single != 2 {
			t.Errorf("%+v", r)
		}
		if _, err := p.held.Open(id); !errors.Is(err, journal.ErrNotFound) {
			t.Errorf("the holder: %v", err)
		}
		p.network(whole)
		p.becomes(Sync, 10*time.Second)
		holds(t, p.held, id, 1, 75_000)
		holds(t, p.held, large, 2, 1_000_000)
	})
}

func TestSilentLinkDegradesWithinFifteenSeconds(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(silent)
		start := time.Now()
		id := p.must(1, 75_000)
		if d := time.Since(start); d < 10*time.Second || d > 16*time.Second {
			t.Errorf("taken after %v", d)
		}
		p.becomes(Degraded, time.Second)
		p.network(whole)
		p.becomes(Sync, 2*time.Minute)
		holds(t, p.held, id, 1, 75_000)
	})
}

func TestStrictNeverTakesASingleCopy(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		if id, err := p.give(true, 1, 75_000); err != nil {
			t.Fatal(err)
		} else {
			holds(t, p.held, id, 1, 75_000)
		}
		p.network(refused)
		id, err := p.give(true, 2, 75_000)
		if !errors.Is(err, ErrSingle) {
			t.Fatalf("with the link cut: %v", err)
		}
		if err := p.ship.Refuse(true); !errors.Is(err, ErrSingle) {
			t.Errorf("at MAIL: %v", err)
		}
		if err := p.ship.Refuse(false); err != nil {
			t.Errorf("at MAIL, not strict: %v", err)
		}
		// What was refused is listed neither now nor after a restart, at neither site.
		p.network(whole)
		p.becomes(Sync, 10*time.Second)
		p.endOwner()
		p.startOwner()
		p.becomes(Sync, 10*time.Second)
		if _, err := p.own.Open(id); !errors.Is(err, journal.ErrNotFound) {
			t.Errorf("the owner holds it: %v", err)
		}
		if _, err := p.held.Open(id); !errors.Is(err, journal.ErrNotFound) {
			t.Errorf("the holder holds it: %v", err)
		}
		if got := len(p.own.List("mbx-1")); got != 1 {
			t.Errorf("%d messages are listed, expected 1", got)
		}
	})
}

// A strict message whose copy arrives, but whose confirmation does not, is refused; the
// copy must not come back as a message.
func TestRefusedCopyDoesNotComeBack(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(silent)
		id, err := p.give(true, 1, 75_000)
		if !errors.Is(err, ErrSingle) {
			t.Fatal(err)
		}
		// As if it had arrived on the old connection all the same.
		p.plant(id, 1, 75_000)
		p.network(whole)
		p.becomes(Sync, 2*time.Minute)
		if got := len(p.own.List("mbx-1")); got != 0 {
			t.Errorf("%d messages are listed, expected none", got)
		}
		if _, ok := p.held.Has(id); ok {
			t.Error("the copy is still held")
		}
	})
}

func TestDeletionsReachTheOtherSite(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		a, b := p.must(1, 1000), p.must(2, 1000)
		if err := p.own.Delete(a); err != nil {
			t.Fatal(err)
		}
		p.ship.Deleted()
		p.within(5*time.Second, "the copy is deleted", func() error {
			if _, ok := p.held.Has(a); ok {
				return errors.New("held")
			}
			return nil
		})
		holds(t, p.held, b, 2, 1000)
		// While the other site is away a deletion waits, over a restart too.
		p.network(refused)
		if err := p.own.Delete(b); err != nil {
			t.Fatal(err)
		}
		p.endOwner()
		p.startOwner()
		p.network(whole)
		p.becomes(Sync, 10*time.Second)
		if _, ok := p.held.Has(b); ok {
			t.Error("the second copy is still held")
		}
		if _, ok := p.own.Has(b); ok {
			t.Error("a deleted message has come back")
		}
		p.within(5*time.Second, "deletions are forgotten", func() error {
			if n := len(p.own.Graves()) + len(p.held.Graves()); n > 0 {
				return fmt.Errorf("%d are not", n)
			}
			return nil
		})
	})
}

func TestAdoptionAndReturn(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		fetched, waiting := p.must(1, 1000), p.must(2, 400_000)
		p.endOwner()
		time.Sleep(14 * time.Minute)
		if got := p.holder.List("mbx-1"); len(got) != 0 {
			t.Fatalf("%d messages were adopted too early", len(got))
		}
		time.Sleep(2 * time.Minute)
		if got := p.holder.List("mbx-1"); len(got) != 2 {
			t.Fatalf("%d messages were adopted, expected 2", len(got))
		}
		if err := p.held.Delete(fetched); err != nil { // the archive had it
			t.Fatal(err)
		}
		p.endHolder() // a restart changes nothing
		p.startHolder()
		if got := p.holder.List("mbx-1"); len(got) != 1 {
			t.Errorf("%d messages after a restart, expected 1", len(got))
		}

		p.startOwner()
		if p.ship.Listable() {
			t.Error("the owner lists before it has heard what was handed over")
		}
		p.becomes(Sync, 10*time.Second)
		if !p.ship.Listable() {
			t.Error("the owner does not list")
		}
		if got := p.own.List("mbx-1"); len(got) != 1 || got[0].ID != waiting {
			t.Errorf("the owner lists %v", got)
		}
		if got := p.holder.List("mbx-1"); len(got) != 0 {
			t.Errorf("the holder still lists %d", len(got))
		}
		holds(t, p.held, waiting, 2, 400_000)
	})
}

// The owner returns and nobody is there: it waits two minutes, then lists everything.
func TestReturnAlone(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.must(1, 1000)
		p.endOwner()
		p.endHolder()
		p.startOwner()
		time.Sleep(time.Minute)
		if p.ship.Listable() {
			t.Error("listed after a minute")
		}
		time.Sleep(time.Minute + time.Second)
		if !p.ship.Listable() {
			t.Error("not listed after two minutes")
		}
		if got := len(p.own.List("mbx-1")); got != 1 {
			t.Errorf("%d messages, expected 1", got)
		}
	})
}

// snapshot copies a directory, as a snapshot of a virtual machine does.
func snapshot(t *testing.T, dir string) (restore func()) {
	t.Helper()
	kept := t.TempDir()
	if err := os.CopyFS(filepath.Join(kept, "s"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
		if err = errors.Join(err, os.CopyFS(dir, os.DirFS(filepath.Join(kept, "s")))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRolledBackOwnerFetchesWhatItLost(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		before := p.must(1, 1000)
		p.endOwner()
		restore := snapshot(t, p.ownerDir)
		p.startOwner()
		p.becomes(Sync, 5*time.Second)
		small, large := p.must(2, 75_000), p.must(3, 2_000_000)
		p.endOwner()
		restore()
		p.startOwner()
		p.becomes(Sync, 10*time.Second)
		holds(t, p.own, before, 1, 1000)
		holds(t, p.own, small, 2, 75_000)
		holds(t, p.own, large, 3, 2_000_000)
	})
}

func TestRolledBackHolderIsFilledAgain(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.endHolder()
		restore := snapshot(t, p.holderDir)
		p.startHolder()
		p.becomes(Sync, 5*time.Second)
		id := p.must(1, 75_000)
		p.endHolder()
		p.becomes(Hold, time.Second)
		restore()
		p.startHolder()
		p.becomes(Sync, 10*time.Second)
		holds(t, p.held, id, 1, 75_000)
	})
}

func TestConflictIsNeverOverwritten(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(refused)
		id := p.must(1, 1000)
		p.plant(id, 99, 1000)
		p.network(whole)
		p.within(time.Minute, "the conflict is seen", func() error {
			if r := p.ship.Report(); r.Conflicts != 1 || !r.Compared {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		holds(t, p.own, id, 1, 1000)
		holds(t, p.held, id, 99, 1000)
		if r := p.ship.Report(); r.State == Sync {
			t.Errorf("claims %s", r.State)
		}
	})
}
