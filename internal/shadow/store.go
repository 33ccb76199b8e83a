package shadow

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"msgw/internal/journal"
)

// put stores a small message.
func (h *Holder) put(payload []byte) error {
	if len(payload) < 4 {
		return fmt.Errorf("%w: put of %d octets", errFrame, len(payload))
	}
	n := binary.BigEndian.Uint32(payload)
	if int64(n) > int64(len(payload)-4) {
		return fmt.Errorf("%w: meta of %d octets", errFrame, n)
	}
	meta, err := journal.ParseMeta(payload[4 : 4+n])
	if err != nil {
		return err
	}
	b := h.held.NewBody(meta.ID)
	defer b.Discard()
	if _, err := b.Write(payload[4+n:]); err != nil {
		return err
	}
	return h.store(meta, b)
}

// store makes a copy durable. A copy that is held already is stored no second time,
// if it is the same and sound. One that comes twice at once is stored by the first.
func (h *Holder) store(meta journal.Meta, b *journal.Body) error {
	defer h.claim(meta.ID)()
	if h.dropped.has(meta.ID, time.Now()) {
		return fmt.Errorf("%s: %w", meta.ID, journal.ErrDeleted)
	}
	held, ok := h.held.Has(meta.ID)
	switch {
	case !ok:
		if err := h.held.Room(meta.Sealed); err != nil {
			return err
		}
		return h.held.Restore(meta, b)
	case held.SHA256 != meta.SHA256:
		h.log.Error("the other site sent another message under an id that is held; refused", "id", meta.ID.String())
		return fmt.Errorf("%s: %w", meta.ID, ErrConflict)
	}
	return h.mend(meta, b)
}

// claim waits until nobody stores a copy under id, and lets nobody else do so until
// done is called.
func (h *Holder) claim(id journal.ID) (done func()) {
	mine := make(chan struct{})
	for {
		h.mu.Lock()
		other := h.storing[id]
		if other == nil {
			h.storing[id] = mine
		}
		h.mu.Unlock()
		if other == nil {
			break
		}
		<-other
	}
	return func() {
		h.mu.Lock()
		delete(h.storing, id)
		h.mu.Unlock()
		close(mine)
	}
}

// stored waits until the copy of id that is being stored, if there is one, is stored or
// is not.
func (h *Holder) stored(id journal.ID) {
	h.mu.Lock()
	c := h.storing[id]
	h.mu.Unlock()
	if c != nil {
		<-c
	}
}

const (
	// dropMemory is how long, at least, a copy that comes after its deletion is refused:
	// one that was on its way over another connection.
	dropMemory = 10 * time.Minute
	// maxDropped bounds what is remembered for that: of more, the last are.
	maxDropped = 1 << 20
)

// dropped remembers ids in two generations of at most half of maxDropped each.
type dropped struct {
	mu       sync.Mutex
	new, old map[journal.ID]struct{}
	since    time.Time // of the new
}

// turn forgets the old generation if it is time; d.mu is held.
func (d *dropped) turn(now time.Time) {
	if age := now.Sub(d.since); age >= dropMemory || len(d.new) >= maxDropped/2 || d.new == nil {
		if d.old = d.new; age >= 2*dropMemory {
			d.old = nil
		}
		d.new, d.since = map[journal.ID]struct{}{}, now
	}
}

func (d *dropped) add(ids []journal.ID, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range ids {
		d.turn(now)
		d.new[id] = struct{}{}
	}
}

func (d *dropped) has(id journal.ID, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.turn(now)
	_, young := d.new[id]
	_, old := d.old[id]
	return young || old
}
