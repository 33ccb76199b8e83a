package journal

import (
	"container/heap"
	"time"
)

// entry is a message that the journal holds. There is one for each waiting message,
// so it is kept to 112 octets. Journal.mu guards what changes.
type entry struct {
	id       ID
	sha      [32]byte
	received int64 // nanoseconds since 1970
	octets   int64
	sealed   int64
	seg      *segment
	owner    *owner
	start    uint32 // of the record in its segment, in units of 8 octets
	bodyCRC  uint32
	trace    uint32
	bareLFs  uint32
	deletes  uint32 // deletions on their way
	flags    Flags
	listed   bool
	buried   bool // a tombstone is durable
}

// owner is what messages of one mailbox and key have in common.
type owner struct {
	mailbox, key string
	drop         *drop
	live         int   // messages
	octets       int64 // of them
}

// drop is what a mailbox lists, in the order of listing. Removed entries stay in it
// until they are half of it.
type drop struct {
	entries []*entry
	gone    int
	ages    ages // the same
}

// Bucket sums up the live messages whose ids begin with one octet: how many there
// are, and the XOR of each id with the first 16 octets of its SHA-256.
type Bucket struct {
	Count uint32
	XOR   [16]byte
}

// Entry names a message and its octets.
type Entry struct {
	ID  ID
	SHA [32]byte // SHA-256 of the sealed message
}

// bucket holds the messages whose ids begin with one octet.
type bucket struct {
	entries map[ID]*entry
	live    Bucket
}

// newEntry makes the entry of m, not yet held; j.mu is held.
func (j *Journal) newEntry(m Meta, seg *segment, start int64, bodyCRC uint32) *entry {
	k := [2]string{m.Mailbox, m.Key}
	o := j.owners[k]
	if o == nil {
		d := j.drops[m.Mailbox]
		if d == nil {
			d = &drop{}
			j.drops[m.Mailbox] = d
		}
		o = &owner{mailbox: m.Mailbox, key: m.Key, drop: d}
		j.owners[k] = o
	}
	return &entry{id: m.ID, sha: m.SHA256, received: m.Received.UnixNano(), octets: m.Octets, sealed: m.Sealed, seg: seg,
		owner: o, start: uint32(start / align), bodyCRC: bodyCRC, trace: uint32(m.Trace), bareLFs: uint32(m.BareLFs), flags: m.Flags}
}

func (e *entry) meta() Meta {
	return Meta{ID: e.id, Mailbox: e.owner.mailbox, Key: e.owner.key, Received: time.Unix(0, e.received).UTC(), Trace: int64(e.trace),
		Octets: e.octets, BareLFs: int64(e.bareLFs), Sealed: e.sealed, SHA256: e.sha, Flags: e.flags}
}

// record returns where the record starts, and its octets with the padding.
func (e *entry) record() (at, size int64) {
	p := prefix{header: messageHeaderSize + len(e.owner.mailbox)}
	if e.flags&bodyInFile == 0 {
		p.body = e.sealed
	}
	return int64(e.start) * align, p.size()
}

// bodyAt returns where an inline body starts in its segment.
func (e *entry) bodyAt() int64 {
	return int64(e.start)*align + prefixSize + messageHeaderSize + int64(len(e.owner.mailbox))
}

// live says that a message is listed and nobody is deleting it.
func (e *entry) live() bool { return e.listed && e.deletes == 0 && !e.buried }

// entry returns the message held under id, or nil; j.mu is held, as it is for the
// other methods of the index.
func (j *Journal) entry(id ID) *entry { return j.buckets[id[0]].entries[id] }

// hold makes a message known under its id: Has and Open find it. Its record is
// durable.
func (j *Journal) hold(e *entry) {
	b := &j.buckets[e.id[0]]
	if b.entries == nil {
		b.entries = map[ID]*entry{}
	}
	b.entries[e.id] = e
	e.seg.live++
	_, size := e.record()
	e.seg.liveOctets += size
}

// list makes a message visible.
func (j *Journal) list(e *entry) {
	if e.listed || j.entry(e.id) != e {
		return // deleted since it was prepared
	}
	e.listed = true
	d := e.owner.drop
	d.entries = append(d.entries, e)
	heap.Push(&d.ages, e)
	if e.deletes == 0 {
		j.count(e, 1)
	}
}

// count adds a live message to the sums of its bucket and owner, or takes it out with -1.
func (j *Journal) count(e *entry, n int) {
	e.owner.live += n
	e.owner.octets += int64(n) * e.octets
	b := &j.buckets[e.id[0]].live
	b.Count += uint32(n)
	for i := range b.XOR {
		b.XOR[i] ^= e.id[i] ^ e.sha[i]
	}
}

// hide takes a message that somebody deletes out of sight.
func (j *Journal) hide(e *entry) {
	if e.deletes++; e.deletes == 1 && e.listed {
		j.count(e, -1)
	}
}

// unhide is for a deletion that failed: the message is there, for all anyone knows.
func (j *Journal) unhide(e *entry) {
	if e.deletes--; e.deletes == 0 && e.listed && !e.buried {
		j.count(e, 1)
	}
}

// unhold takes a message out of the index once its tombstone is durable. false means
// that it was out already.
func (j *Journal) unhold(e *entry) bool {
	if j.entry(e.id) != e {
		return false
	}
	delete(j.buckets[e.id[0]].entries, e.id)
	e.seg.live--
	if d := e.owner.drop; e.listed {
		if d.gone++; d.gone > len(d.entries)/2 {
			kept := make([]*entry, 0, len(d.entries)-d.gone)
			for _, x := range d.entries {
				if j.entry(x.id) == x {
					kept = append(kept, x)
				}
			}
			d.entries, d.gone = kept, 0
			d.ages = append(ages(nil), kept...)
			heap.Init(&d.ages)
		}
	}
	return true
}

// Has returns what the journal says of the message held under id. One that is
// prepared and not yet listed counts, as does one whose deletion is under way.
func (j *Journal) Has(id ID) (Meta, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.entry(id); e != nil {
		return e.meta(), true
	}
	return Meta{}, false
}

// All calls f for every live message, in no particular order, until f returns false.
// Nothing is locked meanwhile: what is listed or deleted while it runs may be told or
// not.
func (j *Journal) All(f func(Meta) bool) {
	var ms []Meta
	for b := range j.buckets {
		ms = ms[:0]
		j.mu.Lock()
		for _, e := range j.buckets[b].entries {
			if e.live() {
				ms = append(ms, e.meta())
			}
		}
		j.mu.Unlock()
		for _, m := range ms {
			if !f(m) {
				return
			}
		}
	}
}

// Summary sums up the live messages by the first octet of their ids, so that two
// sites see cheaply where they differ.
func (j *Journal) Summary() [256]Bucket {
	j.mu.Lock()
	defer j.mu.Unlock()
	var s [256]Bucket
	for i := range s {
		s[i] = j.buckets[i].live
	}
	return s
}

// Bucket returns the live messages whose ids begin with b.
func (j *Journal) Bucket(b byte) []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	es := make([]Entry, 0, j.buckets[b].live.Count)
	for _, e := range j.buckets[b].entries {
		if e.live() {
			es = append(es, Entry{e.id, e.sha})
		}
	}
	return es
}

// listChunk is how many messages are told under one lock.
const listChunk = 1024

// List returns the waiting messages of a mailbox: those of earlier processes in
// the order of their reception, then those of this one in the order of their commit.
func (j *Journal) List(mailbox string) []Meta {
	j.mu.Lock()
	var es []*entry
	if d := j.drops[mailbox]; d != nil {
		es = append(es, d.entries...)
	}
	j.mu.Unlock()
	ms := make([]Meta, 0, len(es))
	for len(es) > 0 {
		n := min(len(es), listChunk)
		j.mu.Lock()
		for _, e := range es[:n] {
			if e.live() {
				ms = append(ms, e.meta())
			}
		}
		j.mu.Unlock()
		es = es[n:]
	}
	return ms
}
