package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/disk/disktest"
	"msgw/internal/health"
	"msgw/internal/journal"
	"msgw/internal/shadow"
)

const mailbox = "mbx-1"

// world is two sites, a witness, senders and an archive.
type world struct {
	t     *testing.T
	log   *slog.Logger
	net   *network
	hosts map[string]*host
	a, b  *host
	stop  chan struct{}
	wg    sync.WaitGroup

	mu       sync.Mutex
	rng      *rand.Rand
	next     uint64
	mail     map[journal.ID]*message
	fault    time.Time // when something was last done to the world
	rolled   bool      // a site was set back: what was deleted may come again
	failures []string
}

// message is one attempt to hand a message in, and what became of it.
type message struct {
	n       uint64
	size    int
	owner   *host
	strict  bool
	acked   bool // the sender was told 250
	copies  int
	refused bool // it was told 451, for the want of a second copy
	fetched bool // the archive got it whole
	dele    bool // the archive tried to delete it, and may not know what came of it
	deleted bool // and was told that it is
}

func newWorld(t *testing.T, seed uint64, log *slog.Logger) *world {
	w := &world{t: t, log: log, rng: rand.New(rand.NewPCG(seed, 1)), net: newNetwork(rand.New(rand.NewPCG(seed, 2))),
		hosts: map[string]*host{}, mail: map[journal.ID]*message{}, stop: make(chan struct{})}
	for i, name := range []string{"msgw1", "msgw2", "witness"} {
		w.hosts[name] = &host{name: name, site: i < 2, w: w, disk: disktest.New(rand.New(rand.NewPCG(seed, uint64(3+i))))}
	}
	w.a, w.b = w.hosts["msgw1"], w.hosts["msgw2"]
	return w
}

func (w *world) other(h *host) *host {
	if h == w.a {
		return w.b
	}
	return w.a
}

func (w *world) targets(self *host) func() []health.Target {
	return func() (ts []health.Target) {
		for _, name := range []string{"msgw1", "msgw2", "witness"} {
			ts = append(ts, health.Target{Name: name, Self: name == self.name, Site: name != "witness", Host: name, SMTP: []string{name}, DNS: []string{name}})
		}
		return ts
	}
}

func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.failures) < 20 {
		w.failures = append(w.failures, fmt.Sprintf(format, args...))
	}
}

func (w *world) intN(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) chance(n int) bool { return w.intN(n) == 0 }

// disturbed notes that something was done to the world.
func (w *world) disturbed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = time.Now()
}

// nap waits some time up to d; false means that the history is over.
func (w *world) nap(d time.Duration) bool {
	t := time.NewTimer(time.Duration(w.intN(int(d))))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.stop:
		return false
	}
}

// send hands messages in, at the site that health puts first.
func (w *world) send() {
	for w.nap(25 * time.Second) {
		first, second := w.a, w.b
		if w.chance(2) {
			first, second = second, first
		}
		for _, h := range []*host{w.a, w.b} {
			if p := h.running(); p != nil {
				vs, _, fresh := p.monitor.Verdicts()
				for _, v := range vs {
					if fresh && v.State == health.Down && v.Name == first.name {
						first, second = second, first
						break
					}
				}
				break
			}
		}
		if !w.give(first) {
			w.give(second)
		}
	}
}

// give hands one message in at a site and returns whether it was taken.
func (w *world) give(h *host) bool {
	p := h.running()
	if p == nil || p.own.Err() != nil || p.own.Room(0) != nil {
		return false
	}
	w.mu.Lock()
	w.next++
	m := &message{n: w.next, owner: h, strict: w.rng.IntN(3) == 0, size: []int{10, 3000, 20_000, 70_000, 400_000}[w.rng.IntN(5)]}
	w.mu.Unlock()
	if p.site.Shipper.Refuse(m.strict) != nil {
		return false
	}
	id := journal.NewID()
	body := p.site.Shipper.NewBody(id)
	defer body.Discard()
	for part := octets(m.n, m.size); len(part) > 0; {
		k := min(len(part), 50_000)
		if _, err := body.Write(part[:k]); err != nil {
			return false
		}
		part = part[k:]
	}
	w.mu.Lock()
	w.mail[id] = m
	w.mu.Unlock()
	// The clock of a machine may jump.
	received := time.Now().Add(time.Duration(w.intN(7200)-3600) * time.Second).UTC()
	meta := journal.Meta{ID: id, Mailbox: mailbox, Key: "0123456789abcdef", Received: received, Octets: int64(m.size)}
	copies, err := p.site.Shipper.Commit(context.Background(), m.strict, shadow.Message{Meta: meta, Body: body})
	other := w.other(h).running()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !p.alive() {
		return false // nobody heard the answer
	}
	switch {
	case err == nil:
		m.acked, m.copies = true, copies
		if m.strict && copies < 2 {
			w.failures = append(w.failures, fmt.Sprintf("message %d: strict, and acknowledged with %d copies", m.n, copies))
		}
		if copies == 2 && !m.dele && other != nil && other.alive() && time.Since(w.fault) > time.Second {
			if _, ok := other.held.Has(id); !ok {
				w.failures = append(w.failures, fmt.Sprintf("message %d: acknowledged with 2 copies, and %s has none", m.n, w.other(h).name))
			}
		}
	case errors.Is(err, shadow.ErrSingle):
		m.refused = true
		w.log.Info("refused", "n", m.n, "id", id.String(), "at", h.name, "size", m.size, "err", err)
	}
	return err == nil
}

// fetch lets the archive come by at a site: it reads what is listed and deletes some.
func (w *world) fetch(h *host, all bool) {
	p := h.running()
	if p == nil {
		return
	}
	var gone []shadow.Mail
	for _, mail := range p.site.List(mailbox) {
		if !all && w.chance(3) {
			continue
		}
		w.mu.Lock()
		m := w.mail[mail.ID]
		w.mu.Unlock()
		if m == nil {
			w.fail("%s is listed at %s and was never sent", mail.ID, h.name)
			continue
		}
		b, err := read(mail)
		if errors.Is(err, journal.ErrDamaged) || errors.Is(err, journal.ErrNotFound) || !p.alive() || err != nil && p.own.Err() != nil {
			continue // it rots, was deleted at the other site, or the process dies
		}
		if err != nil {
			w.fail("message %d at %s: %v", m.n, h.name, err)
			continue
		}
		if !bytes.Equal(b, octets(m.n, m.size)) {
			w.fail("message %d at %s: %d octets that are not what was sent", m.n, h.name, len(b))
			continue
		}
		w.mu.Lock()
		m.fetched = true
		// The other site may adopt its copy before it hears of the refusal.
		if m.refused && m.owner == h && !w.rolled {
			w.failures = append(w.failures, fmt.Sprintf("message %d (%s) was refused, and is listed at %s at %s", m.n, mail.ID, h.name, time.Now().Format("15:04:05")))
		}
		w.mu.Unlock()
		if all || w.chance(2) {
			gone = append(gone, mail)
		}
	}
	if len(gone) == 0 {
		return
	}
	w.mu.Lock()
	for _, mail := range gone {
		w.mail[mail.ID].dele = true
	}
	w.mu.Unlock()
	if err := p.site.Delete(gone...); err == nil && p.alive() {
		w.mu.Lock()
		for _, mail := range gone {
			w.mail[mail.ID].deleted = true
		}
		w.mu.Unlock()
	}
}

func read(m shadow.Mail) ([]byte, error) {
	r, err := m.From.Open(m.ID)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.NewSectionReader(r, 0, m.Sealed))
}

// archive comes by at both sites.
func (w *world) archive() {
	for w.nap(2 * time.Minute) {
		w.fetch(w.a, false)
		w.fetch(w.b, false)
	}
}

// watch looks for a SYNC that is not true.
func (w *world) watch() {
	for {
		select {
		case <-time.After(2 * time.Second):
		case <-w.stop:
			return
		}
		w.checkSync(w.a)
		w.checkSync(w.b)
	}
}

// checkSync compares what a site says with what the other one holds. What a site said
// before the other one's process began need not be true until it has had the time to
// notice.
func (w *world) checkSync(h *host) {
	p, q := h.running(), w.other(h).running()
	if p == nil || q == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := p.site.Shipper.Report()
	if r.State != shadow.Sync || time.Since(w.fault) < 2*silentTime && r.Since.Before(q.began) {
		return
	}
	for id, m := range w.mail {
		if m.owner != h || !m.acked || m.dele {
			continue
		}
		_, own := p.own.Has(id)
		if _, held := q.held.Has(id); own && !held && p.alive() && q.alive() && p.site.Shipper.Report().State == shadow.Sync {
			w.failures = append(w.failures, fmt.Sprintf("%s says SYNC, and %s does not hold message %d", h.name, w.other(h).name, m.n))
		}
	}
}

// judge compares what is left with what was said, when all is well again.
func (w *world) judge() {
	for _, h := range []*host{w.a, w.b} {
		listed := map[journal.ID]bool{}
		for _, mail := range h.running().site.List(mailbox) {
			listed[mail.ID] = true
		}
		for id, m := range w.mail {
			if m.owner == h && m.acked && !m.dele && !listed[id] {
				w.fail("message %d was acknowledged by %s with %d copies, not deleted, and is gone", m.n, h.name, m.copies)
			}
		}
	}
	for range 4 {
		w.fetch(w.a, true)
		w.fetch(w.b, true)
		time.Sleep(90 * time.Second)
	}
	acked := 0
	for _, m := range w.mail {
		if m.acked {
			acked++
			if !m.fetched {
				w.fail("message %d was acknowledged by %s with %d copies, and never fetched", m.n, m.owner.name, m.copies)
			}
		}
	}
	for _, h := range []*host{w.a, w.b} {
		p := h.running()
		if n := len(p.site.List(mailbox)); n > 0 {
			w.fail("%s still lists %d messages", h.name, n)
		}
		if n := len(p.held.Waiting()); n > 0 {
			w.fail("%s still holds copies", h.name)
		}
		if d := damaged(p); len(d) > 0 {
			w.fail("%s is damaged: %+v", h.name, d)
		}
	}
	tally.add(len(w.mail), acked)
}

// tally counts over all histories.
var tally counter

type counter struct {
	mu                     sync.Mutex
	histories, sent, acked int
	faults                 map[string]int
}

func (c *counter) add(sent, acked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.histories, c.sent, c.acked = c.histories+1, c.sent+sent, c.acked+acked
}

func (c *counter) fault(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.faults == nil {
		c.faults = map[string]int{}
	}
	c.faults[name]++
}

func (w *world) String() string { return strings.Join(w.failures, "\n") }
