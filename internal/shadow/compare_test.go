package shadow

import (
	"fmt"
	"testing"
	"time"
)

// An owner that was set back to before a deletion offers the message again. It is
// refused for a while, which must not hold up the others.
func TestDeletedOfferedAgain(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		id := p.must(1, 1000)
		p.endOwner()
		restore := snapshot(t, p.ownerDir)
		p.startOwner()
		if err := p.own.Delete(id); err != nil {
			t.Fatal(err)
		}
		p.within(time.Minute, "the deletion is told", func() error {
			if n := len(p.own.Graves()); n > 0 {
				return fmt.Errorf("%d are not", n)
			}
			return nil
		})
		p.endOwner()
		p.held.Forget(id)
		restore()
		p.startOwner()
		p.becomes(CatchUp, 5*time.Second)
		for range 100 {
			if r := p.ship.Report(); r.State != CatchUp || r.Trouble != "" {
				t.Fatalf("%+v", r)
			}
			time.Sleep(50 * time.Millisecond)
		}
		start := time.Now()
		if _, err := p.give(true, 2, 1000); err != nil || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		p.becomes(Sync, 2*dropMemory+time.Minute)
		holds(t, p.held, id, 1, 1000)
	})
}

// A message that only the other site holds, and that cannot be fetched, has one copy.
func TestUnfetchedIsNoSync(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.endOwner()
		restore := snapshot(t, p.ownerDir)
		p.startOwner()
		p.becomes(Sync, 5*time.Second)
		id := p.must(1, 1000)
		p.endOwner()
		restore()
		p.ownerDisk.set(func() { p.ownerDisk.full = true })
		p.startOwner()
		time.Sleep(10 * time.Second)
		if r := p.ship.Report(); r.State != CatchUp {
			t.Errorf("%+v", r)
		}
		p.ownerDisk.set(func() { p.ownerDisk.full = false })
		p.becomes(Sync, 2*time.Minute)
		holds(t, p.own, id, 1, 1000)
	})
}

// The holder's disk is full when the owner returns: the adoption cannot be ended yet.
// That must not keep senders waiting.
func TestAdoptionCannotEnd(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		if err := p.holder.Adopt(); err != nil {
			t.Fatal(err)
		}
		p.holderDisk.set(func() { p.holderDisk.full = true })
		p.holder.mu.Lock()
		p.holder.opt.Dir += "/missing"
		p.holder.mu.Unlock()
		p.endOwner()
		p.startOwner()
		time.Sleep(5 * time.Second)
		start := time.Now()
		p.must(1, 1000)
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("taken after %v", d)
		}
		p.holderDisk.set(func() { p.holderDisk.full = false })
		p.holder.mu.Lock()
		p.holder.opt.Dir = p.holderDir
		p.holder.mu.Unlock()
		p.becomes(Sync, time.Minute)
		if adopted, _, _ := p.holder.Adopted(); adopted {
			t.Error("still adopted")
		}
	})
}

// The owner returns at the very moment of its adoption.
func TestOwnerReturnsWhileAdopted(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.must(1, 1000)
		p.endHolder()
		p.confirm = func() bool {
			p.startOwner()
			p.becomes(Sync, 10*time.Second)
			return true
		}
		p.endOwner()
		p.startHolder()
		time.Sleep(3 * time.Minute)
		if adopted, _, _ := p.holder.Adopted(); adopted {
			t.Error("adopted while the owner is there")
		}
	})
}

// A conflict that is over does not keep the sites from SYNC.
func TestConflictEnds(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(refused)
		id := p.must(1, 1000)
		p.plant(id, 99, 1000)
		p.network(whole)
		p.within(time.Minute, "the conflict is seen", func() error {
			if r := p.ship.Report(); r.Conflicts != 1 {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		if err := p.held.Evict(id); err != nil {
			t.Fatal(err)
		}
		p.becomes(Sync, 5*time.Minute)
		holds(t, p.held, id, 1, 1000)
	})
}
