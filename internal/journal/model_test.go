package journal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"msgw/internal/disk/disktest"
)

// model is what the journal has promised, beside a journal on a disk that loses power.
type model struct {
	rng    *rand.Rand
	disk   *disktest.Disk
	opt    Options
	j      *Journal
	sealed map[ID][]byte // all that was ever sent
	want   map[ID]bool   // acknowledged: must be listed
	maybe  map[ID]bool   // outcome unknown: may be listed after the next start
	dead   map[ID]bool   // must never be listed again
	graves map[ID]bool   // deleted and not forgotten
	hidden map[ID]*Prepared
	dark   bool                        // the power is gone
	fail   func(op, name string) error // what the disk is told to fail, or nil
}

func newModel(seed uint64) *model {
	rng := rand.New(rand.NewPCG(seed, 7))
	disk := disktest.New(rand.New(rand.NewPCG(seed, 8)))
	return &model{rng: rng, disk: disk, sealed: map[ID][]byte{}, want: map[ID]bool{}, maybe: map[ID]bool{}, dead: map[ID]bool{},
		graves: map[ID]bool{}, hidden: map[ID]*Prepared{},
		opt: Options{FS: disk, InlineMax: 300, SegmentSize: 1500 + rng.Int64N(3000), Reserve: 1, KeepGraves: rng.IntN(3) > 0, CompactRate: -1}}
}

// open starts the next process and checks what it lists.
func (m *model) open() error {
	m.dark, m.fail = false, nil
	var err error
	if m.j, err = Open("journal", m.opt); err != nil {
		return err
	}
	if d := m.j.Damaged(); len(d) > 0 {
		return fmt.Errorf("damage after a crash: %v", d)
	}
	for _, meta := range m.j.List("mbx-1") {
		if m.maybe[meta.ID] {
			m.want[meta.ID] = true
		}
	}
	clear(m.maybe)
	clear(m.hidden)
	return m.check()
}

// check compares all views of the journal with what was promised.
func (m *model) check() error {
	m.disk.Fail(nil)
	defer func() { m.disk.Fail(m.fail) }()
	seen := map[ID]bool{}
	for _, meta := range m.j.List("mbx-1") {
		seen[meta.ID] = true
		if !m.want[meta.ID] && !m.maybe[meta.ID] {
			return fmt.Errorf("%s is listed; deleted %v", meta.ID, m.dead[meta.ID])
		}
		if b, err := load(m.j, meta.ID); err != nil || !bytes.Equal(b, m.sealed[meta.ID]) {
			return fmt.Errorf("%s: other octets than were sent: %v", meta.ID, err)
		}
	}
	for id := range m.want {
		if !seen[id] {
			return fmt.Errorf("%s was acknowledged and is gone", id)
		}
	}
	w := Waiting{}
	for _, meta := range m.j.List("mbx-1") {
		if w.Messages++; w.Messages == 1 || meta.Received.Before(w.Oldest) {
			w.Oldest = meta.Received
		}
		w.Octets += meta.Octets
	}
	if got := m.j.Waiting()["mbx-1"]; got.Messages != w.Messages || got.Octets != w.Octets || !got.Oldest.Equal(w.Oldest) || w.Messages > 0 && got.Keys["0123456789abcdef"] != w.Messages {
		return fmt.Errorf("waiting is %+v, listed are %+v", got, w)
	}
	told, sums := map[ID]bool{}, [256]Bucket{}
	for meta := range m.j.All {
		told[meta.ID] = true
		s := &sums[meta.ID[0]]
		s.Count++
		for i := range s.XOR {
			s.XOR[i] ^= meta.ID[i] ^ meta.SHA256[i]
		}
	}
	if !maps.Equal(told, seen) {
		return fmt.Errorf("All tells %d messages, List %d", len(told), len(seen))
	}
	if m.j.Summary() != sums {
		return errors.New("the summary does not fit what is listed")
	}
	entries := 0
	for b := range 256 {
		for _, e := range m.j.Bucket(byte(b)) {
			if entries++; !seen[e.ID] || sha256.Sum256(m.sealed[e.ID]) != e.SHA {
				return fmt.Errorf("bucket %d tells %s", b, e.ID)
			}
		}
	}
	if entries != len(seen) {
		return fmt.Errorf("buckets tell %d messages, List %d", entries, len(seen))
	}
	graves := map[ID]bool{}
	for _, g := range m.j.Graves() {
		graves[g.ID] = true
		if seen[g.ID] {
			return fmt.Errorf("%s is listed and has a grave", g.ID)
		}
	}
	if !m.opt.KeepGraves && len(graves) > 0 {
		return errors.New("graves that nobody wants")
	}
	for id := range m.graves {
		if m.opt.KeepGraves && !graves[id] {
			return fmt.Errorf("the grave of %s is lost", id)
		}
	}
	if m.dark {
		return nil // a removal that failed keeps its tombstones until the next start
	}
	return m.checkCounts()
}

// checkCounts compares the numbers kept per segment with a fresh count.
func (m *model) checkCounts() error {
	type count struct {
		live, needed, graves int
		octets               int64
	}
	got, want := map[*segment]count{}, map[*segment]count{}
	for _, s := range m.j.segments {
		got[s] = count{s.live, s.needed, s.graves, s.liveOctets}
		want[s] = count{}
	}
	add := func(s *segment, f func(*count)) { c := want[s]; f(&c); want[s] = c }
	for i := range m.j.buckets {
		for _, e := range m.j.buckets[i].entries {
			_, size := e.record()
			add(e.seg, func(c *count) { c.live++; c.octets += size })
		}
	}
	for _, s := range m.j.segments {
		for _, t := range s.dead {
			add(t, func(c *count) { c.needed++ })
		}
	}
	for _, g := range m.j.graves {
		add(g.seg, func(c *count) { c.graves++ })
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("counts of segments are wrong: %v, want %v", slices.Collect(maps.Values(got)), slices.Collect(maps.Values(want)))
	}
	return nil
}

func (m *model) body(id ID) *Body {
	b := m.j.NewBody(id)
	for p := m.sealed[id]; len(p) > 0; {
		n := min(len(p), 200)
		b.Write(p[:n])
		p = p[n:]
	}
	return b
}

// some returns up to n ids of those in set.
func (m *model) some(set map[ID]bool, n int) []ID {
	ids := slices.SortedFunc(maps.Keys(set), func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	m.rng.Shuffle(len(ids), func(a, b int) { ids[a], ids[b] = ids[b], ids[a] })
	return ids[:min(n, len(ids))]
}

func (m *model) newID() ID {
	var id ID
	for i := range id {
		id[i] = byte(m.rng.Uint32())
	}
	n := 1 + m.rng.IntN(200)
	if m.rng.IntN(5) == 0 {
		n = 301 + m.rng.IntN(500)
	}
	m.sealed[id] = text(m.rng, n)
	return id
}

// step does one thing. An error is a broken promise.
func (m *model) step() error {
	// outcome files ids by what became of the call: done, refused, or unknown.
	refused := func(err error) bool { return errors.Is(err, ErrDiskFull) && !errors.Is(err, ErrFailed) }
	switch m.rng.IntN(13) {
	case 0, 1, 2, 3: // store
		var ms []Message
		for range 1 + m.rng.IntN(3) {
			id := m.newID()
			ms = append(ms, Message{metaOf(id, "mbx-1"), m.body(id)})
		}
		p, err := m.j.Prepare(ms...)
		for _, msg := range ms {
			id := msg.Meta.ID
			msg.Body.Discard()
			switch {
			case err == nil && len(ms) == 1:
				m.hidden[id], m.maybe[id] = p, true
			case err == nil:
				m.want[id] = true
			case !refused(err):
				m.maybe[id] = true
			}
		}
		if err == nil && len(ms) > 1 {
			p.List()
		}
	case 4, 5: // list or abort what is prepared
		for id, p := range m.hidden {
			delete(m.hidden, id)
			if m.rng.IntN(2) == 0 {
				p.List()
				m.want[id] = true
				delete(m.maybe, id)
			} else if err := p.Abort(); err == nil {
				m.dead[id], m.graves[id] = true, true
				delete(m.maybe, id)
			}
			break
		}
	case 6, 7, 8: // delete
		ids := m.some(m.want, 1+m.rng.IntN(4))
		err := m.j.Delete(ids...)
		for _, id := range ids {
			if err == nil {
				m.dead[id], m.graves[id] = true, true
			} else if !refused(err) {
				m.maybe[id] = true
			}
			if !refused(err) {
				delete(m.want, id)
			}
		}
	case 9: // forget
		ids := m.some(m.graves, 3)
		m.j.Forget(ids...)
		for _, id := range ids {
			delete(m.graves, id)
		}
	case 10: // another copy takes the place
		for _, id := range m.some(m.want, 1) {
			b := m.body(id)
			m.j.Replace(id, b)
			b.Discard()
		}
	case 11: // and in two steps
		for _, id := range m.some(m.want, 1) {
			meta, _ := m.j.Has(id)
			if err := m.j.Evict(id); err != nil {
				if !refused(err) {
					delete(m.want, id)
					m.maybe[id] = true
				}
				break
			}
			delete(m.want, id)
			b := m.body(id)
			if err := m.j.Restore(meta, b); err == nil {
				m.want[id] = true
			} else if !refused(err) {
				m.maybe[id] = true
			}
			b.Discard()
		}
	case 12:
		m.j.writeSides()
		m.j.compact()
	}
	return nil
}

// power lets operations pass until the power fails. Now and then the disk is full.
func (m *model) power(left int) {
	faults := rand.New(rand.NewPCG(m.rng.Uint64(), 4))
	m.fail = func(op, name string) error {
		if left--; left < 0 {
			m.dark = true
			return syscall.EIO
		}
		if slices.Contains([]string{"mkdir", "create", "write", "rename", "allocate", "truncate"}, op) && faults.IntN(40) == 0 {
			return syscall.ENOSPC
		}
		return nil
	}
	m.disk.Fail(m.fail)
}

// drain deletes and forgets everything and expects the disk to be empty then.
func (m *model) drain() error {
	for range 2 {
		if err := m.open(); err != nil {
			return err
		}
		if err := m.j.Delete(slices.Collect(maps.Keys(m.want))...); err != nil {
			return err
		}
		for _, id := range slices.Collect(maps.Keys(m.want)) {
			m.dead[id] = true
		}
		clear(m.want)
		clear(m.graves)
		for _, g := range m.j.Graves() {
			m.j.Forget(g.ID)
		}
		m.j.Close()
	}
	// What this process stored last goes with the next start; its graves with it.
	if err := m.open(); err != nil {
		return err
	}
	for _, g := range m.j.Graves() {
		m.j.Forget(g.ID)
	}
	m.j.Close()
	if left := namesIn(m.disk, "journal"); len(left) != 0 {
		return fmt.Errorf("left on disk: %v", m.disk.Names())
	}
	return nil
}

// spoilSides changes side files, which must not change what is recovered.
func (m *model) spoilSides() {
	for _, name := range m.disk.Names() {
		if !isSide(filepath.Base(name)) || m.rng.IntN(3) > 0 {
			continue
		}
		m.disk.Change(name, func(b []byte) []byte {
			if len(b) == 0 || m.rng.IntN(2) == 0 {
				return b[:m.rng.IntN(len(b)+1)]
			}
			b[m.rng.IntN(len(b))] ^= byte(1 << m.rng.IntN(8))
			return b
		})
	}
}

func (m *model) run() error {
	for round := range 4 {
		if err := m.open(); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		m.power(20 + m.rng.IntN(250))
		for step := range 100 {
			if err := m.step(); err != nil {
				return fmt.Errorf("round %d, step %d: %w", round, step, err)
			}
			if m.j.Err() != nil {
				break
			}
			if step%8 == 0 {
				if err := m.check(); err != nil {
					return fmt.Errorf("round %d, step %d: %w", round, step, err)
				}
			}
		}
		if m.rng.IntN(3) == 0 {
			m.disk.Fail(nil)
			m.j.Close() // an orderly end before the power cut
		}
		if m.rng.IntN(3) == 0 { // the program dies, and what the next one finds stays
			m.disk.Restart()
			m.j.Close()
			if err := m.open(); err != nil {
				return fmt.Errorf("round %d, next process: %w", round, err)
			}
		}
		m.disk.Crash()
		m.j.Close()
		m.spoilSides()
	}
	return m.drain()
}

// TestModel runs the whole journal beside a model of its promises.
func TestModel(t *testing.T) {
	t.Parallel()
	const runs, seeds = 8, 200 / slow
	for r := range uint64(runs) {
		t.Run(fmt.Sprintf("part%d", r), func(t *testing.T) {
			t.Parallel()
			for s := range uint64(seeds) {
				m := newModel(r*seeds + s)
				if err := m.run(); err != nil {
					t.Fatalf("seed %d: %v", r*seeds+s, err)
				}
			}
		})
	}
}
