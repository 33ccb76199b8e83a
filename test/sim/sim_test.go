// Package sim plays histories of two sites, a witness, senders and an archive in virtual
// time: the real journal, shadow and health over a network and disks that fail in every
// way that they can. Whatever happened, what was acknowledged is fetched, octet for octet.
package sim

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/health"
	"msgw/internal/journal"
	"msgw/internal/shadow"
)

var (
	seeds   = flag.Int("sim.seeds", 15, "how many histories TestHistories plays at the most")
	enough  = flag.Duration("sim.enough", 0, "begin no other history after this time; 0: play them all")
	first   = flag.Uint64("sim.seed", 0, "play the history of this seed only")
	verbose = flag.Bool("sim.log", false, "log what the nodes log")
)

// TestHistories plays histories of random seeds.
func TestHistories(t *testing.T) {
	from, n, start := rand.Uint64N(1<<40), *seeds, time.Now()
	if *first != 0 {
		from, n = *first, 1
	}
	t.Run("seeds", func(t *testing.T) {
		for i := range n {
			seed := from + uint64(i)
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				if *enough > 0 && time.Since(start) > *enough {
					return
				}
				synctest.Test(t, func(t *testing.T) { play(t, seed) })
			})
		}
	})
	tally.mu.Lock()
	defer tally.mu.Unlock()
	var faults []string
	for _, name := range slices.Sorted(maps.Keys(tally.faults)) {
		faults = append(faults, fmt.Sprintf("%s %d", name, tally.faults[name]))
	}
	t.Logf("%d histories from seed %d: %d messages handed in, %d acknowledged; %s", tally.histories, from, tally.sent, tally.acked, strings.Join(faults, ", "))
	if *first == 0 && n >= 15 && tally.acked < 10*max(15, tally.histories) {
		t.Errorf("only %d messages were acknowledged: the histories prove nothing", tally.acked)
	}
}

// play plays one history.
func play(t *testing.T, seed uint64) {
	log := slog.New(slog.DiscardHandler)
	if *verbose {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w := newWorld(t, seed, log)
	for _, h := range w.hosts {
		if err := h.start(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		w.wg.Go(w.send)
	}
	w.wg.Go(w.archive)
	w.wg.Go(w.watch)
	d := &director{world: w}
	for range 10 + w.intN(10) {
		d.step()
		w.nap(40 * time.Second)
	}
	d.heal()
	close(w.stop)
	w.wg.Wait()
	d.settle()
	w.judge()
	for _, h := range w.hosts {
		h.stop(stopped, false)
	}
	if len(w.failures) > 0 {
		t.Errorf("%s\nthe story:\n\t%s\nrepeat it: go test ./test/sim -run TestHistories -sim.seed %d", w, strings.Join(d.story, "\n\t"), seed)
	}
}

// director does things to the world.
type director struct {
	*world
	story []string
}

func (d *director) site() *host {
	if d.chance(2) {
		return d.a
	}
	return d.b
}

// note says what is being done, now.
func (d *director) note(format string, args ...any) {
	d.disturbed()
	text := fmt.Sprintf(format, args...)
	name, _, _ := strings.Cut(text, ":")
	tally.fault(name)
	d.story = append(d.story, time.Now().Format("15:04:05 ")+text)
}

func (d *director) step() {
	switch d.intN(13) {
	case 0, 1:
		d.cutNetwork()
	case 2:
		c := []cut{whole, dropped, refused}[d.intN(3)]
		h := d.site()
		d.note("witness cut: %s %d", h.name, c)
		d.net.set("witness", h.name, c)
		d.net.set(h.name, "witness", c)
	case 3, 4, 5:
		d.endProcess()
	case 6:
		d.away()
	case 7:
		d.adopterDies()
	case 8:
		d.fullDisk()
	case 9:
		d.failedFlush()
	case 10:
		d.setBack()
	case 11:
		d.rot()
	case 12:
		d.bothDie()
	}
	d.disturbed()
}

// cutNetwork cuts the network between the sites for a while, one way or both.
func (d *director) cutNetwork() {
	there, back := []cut{whole, dropped, refused}[d.intN(3)], []cut{whole, dropped, refused}[d.intN(3)]
	slow := []time.Duration{2 * time.Millisecond, 20 * time.Millisecond, 3 * time.Second}[d.intN(3)]
	d.note("network: %d one way, %d the other, up to %v", there, back, slow)
	d.net.set(d.a.name, d.b.name, there)
	d.net.set(d.b.name, d.a.name, back)
	d.net.mu.Lock()
	d.net.slow = slow
	d.net.mu.Unlock()
	d.nap(90 * time.Second)
	d.mend()
}

func (d *director) mend() {
	d.disturbed()
	for _, from := range []string{"msgw1", "msgw2", "witness"} {
		for _, to := range []string{"msgw1", "msgw2", "witness"} {
			d.net.set(from, to, whole)
		}
	}
	d.net.mu.Lock()
	d.net.slow = 2 * time.Millisecond
	d.net.mu.Unlock()
}

func (d *director) ended() (end, bool) {
	return []end{stopped, killed, unplugged}[d.intN(3)], d.chance(3)
}

// endProcess ends a site's process for a short time.
func (d *director) endProcess() {
	h := d.site()
	how, silently := d.ended()
	d.note("end: %s %d, silently %v", h.name, how, silently)
	h.stop(how, silently)
	d.nap(30 * time.Second)
	d.begin(h)
}

// begin starts a host's process, whatever it takes.
func (d *director) begin(h *host) {
	if h.running() != nil {
		return
	}
	d.disturbed()
	if err := h.start(); err != nil {
		h.disk.Fail(nil)
		if err := h.start(); err != nil {
			d.fail("%s does not start: %v", h.name, err)
			d.t.Fatal(d.world)
		}
	}
}

// away lets a site be gone for so long that the other one adopts its messages.
func (d *director) away() {
	h := d.site()
	how, silently := d.ended()
	d.note("away: %s %d, silently %v", h.name, how, silently)
	h.stop(how, silently)
	if d.chance(2) {
		d.nap(20 * time.Second)
		if p := d.other(h).running(); p != nil {
			if err := p.site.Holder.Adopt(); err != nil {
				d.t.Logf("adopt: %v", err)
			}
		}
	}
	time.Sleep(adoptConfirmed + 10*time.Second)
	if d.chance(2) {
		time.Sleep(adoptAfter)
		d.handsOver(d.other(h))
	}
	d.begin(h)
}

// handsOver checks that a site that was alone for long hands over what it holds.
func (d *director) handsOver(h *host) {
	p := h.running()
	if p == nil {
		return
	}
	listed := map[journal.ID]bool{}
	for _, m := range p.site.List(mailbox) {
		listed[m.ID] = true
	}
	for name, j := range map[string]*journal.Journal{"own": p.own, "held": p.held} {
		for _, m := range j.List(mailbox) {
			if !listed[m.ID] {
				d.fail("%s, alone for long, does not hand over %s of its %s", h.name, m.ID, name)
			}
		}
	}
}

// adopterDies lets a site be gone, the other one adopt and hand over, and then die; the
// owner comes back alone.
func (d *director) adopterDies() {
	h := d.site()
	o := d.other(h)
	d.note("adopter dies: %s", o.name)
	h.stop(killed, d.chance(2))
	time.Sleep(adoptConfirmed + 30*time.Second)
	d.fetch(o, false)
	how, silently := d.ended()
	o.stop(how, silently)
	d.begin(h)
	time.Sleep(returnTime + 5*time.Second)
	d.handsOwn(h)
	d.fetch(h, false)
	d.nap(time.Minute)
	d.begin(o)
}

// handsOwn checks that a site whose partner does not come lists its own messages.
func (d *director) handsOwn(h *host) {
	if p := h.running(); p != nil && len(p.own.List(mailbox)) > 0 && len(p.site.List(mailbox)) == 0 {
		d.fail("%s, back and alone, lists nothing", h.name)
	}
}

func (d *director) bothDie() {
	d.note("both die")
	how, _ := d.ended()
	d.a.stop(how, true)
	d.nap(3 * time.Second)
	d.b.stop(how, true)
	d.nap(time.Minute)
	for _, h := range []*host{d.site(), d.a, d.b} {
		d.begin(h)
		d.nap(90 * time.Second)
	}
}

func (d *director) fullDisk() {
	h := d.site()
	d.note("disk full: %s", h.name)
	h.disk.SetFree(0)
	if d.chance(2) {
		h.disk.Fail(func(op, _ string) error {
			if op == "write" || op == "create" || op == "allocate" {
				return syscall.ENOSPC
			}
			return nil
		})
	}
	d.nap(time.Minute)
	h.disk.SetFree(1 << 40)
	h.disk.Fail(nil)
}

// failedFlush lets a flush fail. The journal stops, and the process is started again.
func (d *director) failedFlush() {
	h := d.site()
	d.note("flush fails: %s", h.name)
	after := d.intN(4)
	h.disk.Fail(func(op, _ string) error {
		if op == "sync" || op == "syncdir" {
			if after--; after < 0 {
				return syscall.EIO
			}
		}
		return nil
	})
	d.nap(40 * time.Second)
	how, silently := d.ended()
	if how == stopped {
		how = killed
	}
	h.stop(how, silently)
	h.disk.Fail(nil)
	d.begin(h)
}

// well waits until both sites say SYNC and nothing is damaged, for a while.
func (d *director) well(within time.Duration) bool {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(time.Second) {
		good := true
		for _, h := range []*host{d.a, d.b} {
			p := h.running()
			good = good && p != nil && p.site.Shipper.Report().State == shadow.Sync && len(damaged(p)) == 0
		}
		if good {
			return true
		}
	}
	return false
}

// damaged returns the messages that a process knows to be damaged. Places that belong to no
// known message are for a person to look at, and nothing is missing.
func damaged(p *process) (ds []journal.Damage) {
	for _, d := range append(p.own.Damaged(), p.held.Damaged()...) {
		if d.ID != (journal.ID{}) {
			ds = append(ds, d)
		}
	}
	return ds
}

// sound is well, and nothing rots unseen: each message has two good copies.
func (d *director) sound(within time.Duration) bool {
	if !d.well(within) {
		return false
	}
	for _, h := range []*host{d.a, d.b} {
		d.verify(h)
	}
	return d.well(within)
}

func (d *director) verify(h *host) {
	p := h.running()
	for _, j := range []*journal.Journal{p.own, p.held} {
		if err := j.Verify(context.Background(), func(journal.Meta, error) {}); err != nil {
			d.fail("%s: verify: %v", h.name, err)
		}
	}
}

// setBack restores a site to what it was a while ago, as a snapshot of its virtual
// machine would. All that it knows since then must be known to the other site: nothing
// could bring back what had one copy.
func (d *director) setBack() {
	h := d.site()
	if !d.sound(3 * time.Minute) {
		return
	}
	saved := h.disk.Snapshot()
	d.nap(3 * time.Minute)
	if !d.sound(3 * time.Minute) {
		return
	}
	d.note("set back: %s", h.name)
	d.mu.Lock()
	d.rolled = true
	d.mu.Unlock()
	h.stop(killed, d.chance(2))
	h.disk.Revert(saved)
	d.nap(20 * time.Second)
	d.begin(h)
	d.well(30 * time.Minute) // until then the other site's are the only copies
}

// rot changes an octet on a site's disk. The other copy must be sound until it is
// repaired.
func (d *director) rot() {
	h := d.site()
	if !d.sound(3 * time.Minute) {
		return
	}
	names := h.disk.Names()
	if len(names) == 0 {
		return // it has not held a message yet
	}
	name := names[d.intN(len(names))]
	if strings.HasSuffix(name, ".json") {
		return // an operator's matter
	}
	d.note("rot: %s %s", h.name, name)
	at := d.intN(1 << 20)
	h.disk.Change(name, func(b []byte) []byte {
		if len(b) > 0 {
			b[at%len(b)] ^= 1 << (at % 8)
		}
		return b
	})
	if d.chance(2) {
		d.verify(h) // else the daily check finds it, or whoever reads it, or the next start
	}
	d.well(30 * time.Minute)
}

// heal ends all that is done to the world.
func (d *director) heal() {
	d.mend()
	for _, h := range d.hosts {
		h.disk.Fail(nil)
		h.disk.SetFree(1 << 40)
		if h.running() != nil && h.site && h.running().own.Err() != nil {
			h.stop(killed, false)
		}
		d.begin(h)
	}
}

// settle waits until all is well: both sites say SYNC and all verdicts are good.
func (d *director) settle() {
	if !d.well(40 * time.Minute) {
		for _, h := range []*host{d.a, d.b} {
			d.fail("%s is not well: %+v, damaged %v", h.name, h.running().site.Shipper.Report(), damaged(h.running()))
		}
	}
	time.Sleep(2 * time.Minute) // a comparison goes by
	d.checkSync(d.a)
	d.checkSync(d.b)
	// A host that flapped is held down for up to 10 minutes.
	for end := time.Now().Add(12 * time.Minute); ; time.Sleep(10 * time.Second) {
		wrong := ""
		for _, h := range d.hosts {
			vs, _, fresh := h.running().monitor.Verdicts()
			for _, v := range vs {
				if !fresh || v.State != health.Up {
					wrong = fmt.Sprintf("%s thinks that %s is %s: %s", h.name, v.Name, v.State, v.Reason)
				}
			}
		}
		if wrong == "" {
			return
		}
		if time.Now().After(end) {
			d.fail("%s", wrong)
			return
		}
	}
}
