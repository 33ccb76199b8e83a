package journal

import (
	"container/heap"
	"time"
)

// Waiting sums up what waits in a mailbox.
type Waiting struct {
	Messages int
	Octets   int64 // of the messages as they came in
	Oldest   time.Time
	Keys     map[string]int // messages by key id
}

// Waiting sums up every mailbox that has messages. The sums are kept as messages come
// and go, so it costs nothing to ask often. One whose deletion is under way does not
// count, but may still be the oldest.
func (j *Journal) Waiting() map[string]Waiting {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make(map[string]Waiting, len(j.drops))
	for _, o := range j.owners {
		if o.live == 0 {
			continue
		}
		w, ok := all[o.mailbox]
		if !ok {
			w = Waiting{Oldest: time.Unix(0, j.oldest(o.drop)).UTC(), Keys: map[string]int{}}
		}
		w.Messages += o.live
		w.Octets += o.octets
		w.Keys[o.key] += o.live
		all[o.mailbox] = w
	}
	return all
}

// oldest returns when the oldest message came in that d lists; there is one.
func (j *Journal) oldest(d *drop) int64 {
	for j.entry(d.ages[0].id) != d.ages[0] {
		heap.Pop(&d.ages)
	}
	return d.ages[0].received
}

// ages is a heap of messages by time, since clocks are set back. Deleted ones stay in it
// until they come up, or are half of what is listed.
type ages []*entry

func (a ages) Len() int           { return len(a) }
func (a ages) Less(i, k int) bool { return a[i].received < a[k].received }
func (a ages) Swap(i, k int)      { a[i], a[k] = a[k], a[i] }
func (a *ages) Push(e any)        { *a = append(*a, e.(*entry)) }

func (a *ages) Pop() any {
	old := *a
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*a = old[:len(old)-1]
	return e
}
