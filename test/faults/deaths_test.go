//go:build faults

package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"msgw/test/labtest"
)

// TestKilled kills one site or both, again and again, under load.
func TestKilled(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(seed(t), 3))
	a := newAppliance(t, plan{times: times})
	for i := range rounds(t, 6) {
		a.flow(15, 0)
		victims := [][]*machine{{a.sites[0]}, {a.sites[1]}, {a.sites[0], a.sites[1]}}[i%3]
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		for _, m := range victims {
			m.kill()
		}
		time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond) // in SYNC, in HOLD, in DEGRADED
		for _, m := range victims {
			m.start()
		}
		for _, m := range victims {
			m.ready()
		}
	}
	a.finish()
}

// TestStopped lets a site stand still for longer than it may be silent, and be adopted
// meanwhile; its connections stay open.
func TestStopped(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times})
	for i := range rounds(t, 2) {
		still, other := a.sites[i%2], a.sites[1-i%2]
		a.flow(30, 30)
		for _, x := range a.archive {
			x.pause() // else nothing waits that could be adopted
		}
		a.flow(30, 0)
		began := time.Now()
		still.signal(syscall.SIGSTOP)
		since := a.becomes(1-i%2, 20*time.Second, "DEGRADED")
		t.Logf("%s: DEGRADED %.2f s after %s stood still", other.name, since.Sub(began).Seconds(), still.name)
		t.Logf("%s: adopted %.2f s after %s stood still", other.name, a.adopts(1-i%2).Sub(began).Seconds(), still.name)
		for _, x := range a.archive {
			x.open()
		}
		a.flow(20, 20)
		still.signal(syscall.SIGCONT)
		a.heals()
		a.parted()
	}
	a.finish()
}

// parted sees the sites hand over different messages, as they do but for an adoption.
func (a *appliance) parted() {
	a.t.Helper()
	for _, x := range a.archive {
		x.pause()
	}
	labtest.Within(a.t, 40*time.Second, "mail waits at both sites", func() error {
		if one, two := len(a.owned(a.sites[0])), len(a.owned(a.sites[1])); one < 10 || two < 10 {
			return fmt.Errorf("%d and %d messages", one, two)
		}
		return nil
	})
	one, two := a.listed(0), a.listed(1)
	both := 0
	for _, id := range one {
		if slices.Contains(two, id) {
			both++
		}
	}
	if both > 0 {
		a.t.Errorf("%d of %d and %d messages are handed over at both sites", both, len(one), len(two))
		for _, m := range a.sites {
			a.t.Logf("%s: %+v", m.name, *m.mustStatus().Copies)
		}
	}
	for _, x := range a.archive {
		x.open()
	}
}

// adopts waits until a site hands the other one's messages over.
func (a *appliance) adopts(site int) (since time.Time) {
	a.t.Helper()
	labtest.Within(a.t, 60*time.Second, a.sites[site].name+" adopts", func() error {
		s, err := a.sites[site].status()
		if err == nil && !s.Copies.Adopted {
			err = errors.New("it has not")
		}
		if err == nil {
			since = s.Copies.AdoptedSince
		}
		return err
	})
	return since
}

// TestSiteLost loses a site with all that it held, under load. The other one hands over
// what it acknowledged, without anybody saying so.
func TestSiteLost(t *testing.T) {
	t.Parallel()
	for name, witness := range map[string]bool{"witnessed": true, "unwitnessed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAppliance(t, plan{times: times})
			lost, left := a.sites[0], a.sites[1]
			a.flow(60, 60)
			a.archive[0].pause() // mail waits at the site that is lost
			a.flow(80, 0)
			if !witness {
				a.witness.kill()
			}
			lost.kill()
			began := time.Now()
			if err := os.RemoveAll(lost.dir); err != nil {
				t.Fatal(err)
			}
			d := a.adopts(1).Sub(began)
			t.Logf("adopted %.1f s after the loss (6 s if the witness confirms, else 20 s): %s", d.Seconds(), left.mustStatus().Copies.AdoptedWhy)
			switch {
			case witness && (d < 6*time.Second || d > 15*time.Second):
				t.Error("a witness that confirms should make it sooner")
			case !witness && (d < 19*time.Second || d > 25*time.Second):
				t.Error("that is not 20 s")
			}
			a.flow(40, 40)
			a.load.pause()
			a.load.end()
			a.empty(1)
			if s := left.mustStatus(); s.Copies.State != "DEGRADED" || !s.Accepting {
				t.Errorf("%s: %+v, accepting %v", left.name, *s.Copies, s.Accepting)
			}
		})
	}
}

// TestOwnerReturnsAlone loses the owner, lets the archive delete a part at the adopter,
// loses the adopter, and brings the owner back first.
func TestOwnerReturnsAlone(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times, calm: true})
	owner, adopter := a.sites[0], a.sites[1]
	for range rounds(t, 1) {
		a.load.open()
		a.flow(90, 0)
		a.load.pause()
		owned := a.owned(owner)

		owner.kill()
		labtest.Within(t, 15*time.Second, "an operator says that msgw2 adopts", func() error {
			_, err := adopter.msgw("node", "adopt", owner.name, "--dir", adopter.dir)
			return err
		})
		// The archive takes a third of each site's messages, in each mailbox.
		third := func(from map[string]bool) func(string) bool {
			n := 0
			return func(uidl string) bool {
				if !from[uidl] {
					return false
				}
				n++
				return n%3 == 0
			}
		}
		pick, pickOwn := third(owned), third(a.owned(adopter))
		for _, b := range a.boxes {
			if _, err := a.archive[1].session(t.Context(), b, func(uidl string) bool { return pick(uidl) || pickOwn(uidl) }); err != nil {
				t.Fatalf("adopter: %v", err)
			}
		}
		atAdopter := len(owned) - len(a.owned(owner))
		if atAdopter < len(owned)/3-1 {
			t.Errorf("the adopter handed over %d of %d", atAdopter, len(owned))
		}
		adopter.kill()

		began := time.Now()
		owner.start()
		owner.ready()
		own := func() (n int) { // by and by the owner adopts the adopter's, too
			for _, uidl := range a.listed(0) {
				if owned[uidl] {
					n++
				}
			}
			return n
		}
		if n := own(); n != 0 {
			t.Errorf("%s lists %d messages before it has heard what the other site handed over", owner.name, n)
		}
		labtest.Within(t, 20*time.Second, "the owner lists everything", func() error {
			if n := own(); n < len(owned) {
				return fmt.Errorf("%d of %d", n, len(owned))
			}
			return nil
		})
		waited := time.Since(began)
		t.Logf("the owner, alone, lists all of its %d messages %.1f s after its start (10 s); %d of them were handed over by the adopter", len(owned), waited.Seconds(), atAdopter)
		if waited < 9*time.Second {
			t.Error("that is before its time")
		}
		pick = third(owned)
		for _, b := range a.boxes {
			if _, err := a.archive[0].session(t.Context(), b, pick); err != nil {
				t.Fatalf("owner: %v", err)
			}
		}
		a.load.open() // with one copy
		a.flow(20, 0)
		a.load.pause()
		adopter.start()
		for site := range a.sites {
			a.becomes(site, 60*time.Second, "SYNC")
		}
		// Each lists its own again, and what was handed over anywhere is gone everywhere.
		for site, m := range a.sites {
			want := a.owned(m)
			for _, uidl := range a.listed(site) {
				if !want[uidl] {
					t.Errorf("back together, %s lists %s", m.name, uidl)
				}
				delete(want, uidl)
			}
			if len(want) > 0 {
				t.Errorf("back together, %s does not list %v", m.name, want)
			}
		}
	}
	a.finish()
}

// owned returns the ids that a site acknowledged and nobody has deleted.
func (a *appliance) owned(m *machine) map[string]bool {
	ids := map[string]bool{}
	for id, host := range a.led.owed(time.Now()) {
		if host == m.name {
			ids[id] = true
		}
	}
	return ids
}

// listed returns what the archive is offered at a site, in all mailboxes.
func (a *appliance) listed(site int) (ids []string) {
	a.t.Helper()
	for _, b := range a.boxes {
		labtest.Within(a.t, 10*time.Second, fmt.Sprintf("%s lists %s", a.sites[site].name, b.id), func() error {
			l, err := a.archive[site].session(a.t.Context(), b, nothing)
			if err == nil {
				ids = append(ids, l...)
			}
			return err
		})
	}
	return ids
}

// TestSnapshotRestored sets a site back to what it was before, all of its state, as by
// restoring a snapshot of its virtual machine.
func TestSnapshotRestored(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times})
	for i := range rounds(t, 1) {
		m, other := a.sites[i%2], a.sites[1-i%2]
		a.archive[i%2].pause() // mail waits in the snapshot
		a.flow(40, 0)
		a.load.pause()
		m.end(syscall.SIGTERM)
		saved := m.dir + ".saved"
		if err := run("cp", "-a", m.dir, saved); err != nil {
			t.Fatal(err)
		}
		m.start()
		a.load.open()
		for site := range a.sites {
			a.becomes(site, 60*time.Second, "SYNC")
		}
		a.archive[i%2].open()
		a.flow(100, 100) // what is in the snapshot is fetched and deleted
		a.archive[i%2].pause()
		a.flow(60, 0) // what waits now is not in it
		a.load.pause()
		for site := range a.sites {
			a.becomes(site, 60*time.Second, "SYNC")
		}
		if i%2 == 0 {
			m.end(syscall.SIGTERM)
		} else {
			m.kill()
		}
		if err := errors.Join(os.RemoveAll(m.dir), os.Rename(saved, m.dir)); err != nil {
			t.Fatal(err)
		}
		m.start()
		m.ready()
		a.load.open()
		a.flow(40, 0)
		a.archive[i%2].open()
		a.heals()
		a.well(60 * time.Second)
		t.Logf("%s was set back; %s: %v", m.name, other.name, other.mustStatus().Trouble)
	}
	a.finish()
}
