package shadow

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/journal"
)

var (
	seeds = flag.Int("shadow.seeds", 20, "how many histories TestHistories plays")
	first = flag.Uint64("shadow.seed", 0, "play this history only")
)

// TestHistories plays histories of a site, its archive and the other site over a
// network that fails, with restarts and restored snapshots, in virtual time. Whatever
// happened: what was acknowledged and not fetched is there, octet for octet; what was
// refused is not; and SYNC is claimed only when both sites hold the same.
func TestHistories(t *testing.T) {
	t.Parallel()
	from, n := rand.Uint64N(1<<32), *seeds
	if *first != 0 {
		from, n = *first, 1
	}
	if testing.Short() {
		n = min(n, 10)
	}
	for i := range n {
		seed := from + uint64(i)
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { play(t, seed) })
		})
	}
}

// sent is a message of a history.
type sent struct {
	n       uint64
	size    int
	strict  bool
	acked   bool
	refused bool
	fetched bool // and deleted, by the archive
}

// settled is how long it may take until all is well: a site that was set back may offer
// what the other one remembers as deleted.
const settled = 2*dropMemory + 5*time.Minute

type history struct {
	*pair
	r    *rand.Rand
	all  map[journal.ID]*sent
	next uint64
	// rolled says that a site was set back since: what the archive had may come again.
	rolled bool
}

func play(t *testing.T, seed uint64) {
	h := &history{pair: newPair(t), r: rand.New(rand.NewPCG(seed, 1)), all: map[journal.ID]*sent{}}
	h.startHolder()
	h.startOwner()
	for range 12 + h.r.IntN(20) {
		h.step()
	}
	// In the end all is well.
	h.network(whole)
	h.becomes(Sync, settled)
	time.Sleep(2 * time.Minute) // a comparison goes by
	h.becomes(Sync, time.Minute)
	h.judge()
	if t.Failed() {
		t.Logf("repeat it: go test ./internal/shadow -run TestHistories -shadow.seed %d", seed)
	}
}

func (h *history) step() {
	switch h.r.IntN(11) {
	case 0, 1, 2, 3:
		h.send(1 + h.r.IntN(4))
	case 4:
		if h.ship.Listable() {
			h.fetch(h.own, h.own.List("mbx-1"))
			h.ship.Deleted()
		}
	case 5:
		h.network([]cut{whole, whole, refused, silent}[h.r.IntN(4)])
		time.Sleep(time.Duration(h.r.IntN(20_000)) * time.Millisecond)
	case 6:
		h.endHolder()
		time.Sleep(time.Duration(h.r.IntN(5)) * time.Second)
		h.startHolder()
	case 7:
		h.endOwner()
		time.Sleep(time.Duration(h.r.IntN(5)) * time.Second)
		h.startOwner()
	case 8:
		h.away()
	case 9:
		h.setBack()
	case 10: // the holder's disk is full for a while
		h.holderDisk.set(func() { h.holderDisk.full = true })
		time.Sleep(time.Duration(h.r.IntN(5)) * time.Second)
		h.send(1 + h.r.IntN(3))
		h.holderDisk.set(func() { h.holderDisk.full = false })
	}
}

// send gives messages at the same time.
func (h *history) send(n int) {
	type outcome struct {
		id  journal.ID
		m   *sent
		err error
	}
	results := make(chan outcome)
	for range n {
		h.next++
		m := &sent{n: h.next, size: []int{10, 5000, 75_000, 600_000}[h.r.IntN(4)], strict: h.r.IntN(3) == 0}
		go func() {
			id, err := h.give(m.strict, m.n, m.size)
			results <- outcome{id, m, err}
		}()
	}
	for range n {
		o := <-results
		h.all[o.id] = o.m
		switch {
		case o.err == nil:
			o.m.acked = true
			if _, ok := h.held.Has(o.id); o.m.strict && !ok {
				h.t.Errorf("message %d was acknowledged with one copy, under the strict policy", o.m.n)
			}
		case errors.Is(o.err, ErrSingle):
			o.m.refused = true
		default:
			h.t.Errorf("message %d: %v", o.m.n, o.err)
		}
	}
}

// fetch lets the archive have and delete some of what is listed.
func (h *history) fetch(j *journal.Journal, listed []journal.Meta) {
	for _, meta := range listed {
		if h.r.IntN(2) == 0 {
			continue
		}
		m := h.all[meta.ID]
		if m == nil {
			h.t.Errorf("%s is listed and was never sent", meta.ID)
			continue
		}
		if err := check(j, meta.ID, m.n, m.size); err != nil {
			h.t.Errorf("message %d: %v", m.n, err)
		}
		if err := j.Delete(meta.ID); err != nil {
			h.t.Errorf("delete message %d: %v", m.n, err)
		}
		m.fetched = true
	}
}

// away lets the owner be gone for so long that its messages are adopted, and the
// archive fetch some of them there.
func (h *history) away() {
	h.endOwner()
	time.Sleep(16 * time.Minute)
	h.fetch(h.held, h.holder.List("mbx-1"))
	h.startOwner()
}

// setBack restores a site to what it was some messages ago, as a snapshot would, while
// the other one holds everything.
func (h *history) setBack() {
	h.network(whole)
	h.becomes(Sync, settled)
	h.rolled = true
	owner := h.r.IntN(2) == 0
	if owner {
		h.endOwner()
		restore := snapshot(h.t, h.ownerDir)
		h.startOwner()
		h.send(2)
		h.becomes(Sync, settled)
		h.endOwner()
		restore()
		h.startOwner()
		return
	}
	h.endHolder()
	restore := snapshot(h.t, h.holderDir)
	h.startHolder()
	h.send(2)
	h.endHolder()
	restore()
	h.startHolder()
}

// judge compares what is there with what was said.
func (h *history) judge() {
	listed := map[journal.ID]bool{}
	for _, meta := range h.own.List("mbx-1") {
		listed[meta.ID] = true
		m := h.all[meta.ID]
		switch {
		case m == nil:
			h.t.Errorf("%s is listed and was never sent", meta.ID)
		case m.refused:
			h.t.Errorf("message %d was refused and is listed", m.n)
		case m.fetched && !h.rolled:
			h.t.Errorf("message %d was fetched and deleted, and is listed again", m.n)
		}
	}
	for id, m := range h.all {
		if !m.acked || m.fetched {
			continue
		}
		if !listed[id] {
			h.t.Errorf("message %d was acknowledged and is lost", m.n)
			continue
		}
		if err := check(h.own, id, m.n, m.size); err != nil {
			h.t.Errorf("message %d: %v", m.n, err)
		}
		if err := check(h.held, id, m.n, m.size); err != nil {
			h.t.Errorf("copy of message %d: %v", m.n, err)
		}
	}
	if own, held := h.own.Summary(), h.held.Summary(); own != held {
		h.t.Error("SYNC is claimed, and the sites hold different messages")
	}
}
