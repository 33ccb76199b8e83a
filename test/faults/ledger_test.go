//go:build faults

package faults

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"msgw/internal/lab/report"
)

// ledger is the history that must hold over both sites:
//   - what was acknowledged is fetched at least once, octet for octet;
//   - what was acknowledged is held somewhere until a session that deleted it has said
//     QUIT;
//   - a site that says SYNC has given the other one all that it has acknowledged;
//   - what is for a strict mailbox is at both sites when it is acknowledged.
type ledger struct {
	seed uint64

	mu       sync.Mutex
	next     int
	acked    map[delivery]bool
	tries    map[int]int             // acknowledged, or perhaps taken
	ids      map[string]acknowledged // by message id
	fetched  map[delivery]map[string]int
	leaving  map[string]bool // a session that deletes it has said, or is about to say, QUIT
	deleted  map[string]bool // and was told +OK
	again    int             // fetched after that
	faults   []string
	strict   int // acknowledged strict messages that were looked for at the other site
	audits   int // times that both sites' lists were compared with this
	syncs    int // of those, with a site that said SYNC
	messages int // acknowledged
}

// delivery is a message to one of its mailboxes.
type delivery struct {
	i   int
	box string
}

type acknowledged struct {
	at   time.Time
	host string // that owns it
	i    int
}

func newLedger() *ledger {
	return &ledger{seed: uint64(time.Now().UnixNano()), acked: map[delivery]bool{}, tries: map[int]int{}, ids: map[string]acknowledged{},
		fetched: map[delivery]map[string]int{}, leaving: map[string]bool{}, deleted: map[string]bool{}}
}

// take gives out the number of the next message.
func (l *ledger) take() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next - 1
}

// message makes message i: mostly small, some too large to be kept in one record, a few
// of 2 MB.
func (l *ledger) message(i int) []byte {
	size := 1<<10 + (i*7919)%(64<<10)
	switch {
	case i%41 == 40:
		size = 2 << 20
	case i%9 == 8:
		size = 200<<10 + (i*7919)%(400<<10)
	}
	return report.New(l.seed, i, size)
}

func (l *ledger) faultf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault(format, args...)
}

// fault notes a breach; l.mu is held.
func (l *ledger) fault(format string, args ...any) {
	if len(l.faults) < 20 {
		l.faults = append(l.faults, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// tried notes that a message may have been taken without an acknowledgement.
func (l *ledger) tried(i, times int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries[i] += times
}

// ack notes an acknowledgement.
func (l *ledger) ack(i int, to []box, host string, ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries[i]++
	l.messages++
	if len(ids) != len(to) {
		l.fault("message %d to %d mailboxes was acknowledged with the ids %q", i, len(to), ids)
	}
	for _, b := range to {
		l.acked[delivery{i, b.id}] = true
	}
	for _, id := range ids {
		l.ids[id] = acknowledged{at: time.Now(), host: host, i: i}
	}
}

// fetch notes what an archive got, and returns whether it is what was sent.
func (l *ledger) fetch(host, box, uidl string, msg []byte) bool {
	_, i, ok := report.Identify(msg)
	if ok = ok && bytes.Equal(msg, l.message(i)); !ok {
		l.faultf("%s handed %d octets over as %s that nobody sent so (message %d)", host, len(msg), uidl, i)
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.ids[uidl]; ok && a.i != i {
		l.fault("%s handed message %d over as %s, which is message %d", host, i, uidl, a.i)
	}
	d := delivery{i, box}
	if l.fetched[d] == nil {
		l.fetched[d] = map[string]int{}
	}
	l.fetched[d][uidl]++
	if l.deleted[uidl] {
		l.again++
	}
	return true
}

// leave notes that a session is about to say QUIT, left that it was told +OK.
func (l *ledger) leave(uidls []string) { l.mark(l.leaving, uidls) }
func (l *ledger) left(uidls []string)  { l.mark(l.deleted, uidls) }

func (l *ledger) mark(in map[string]bool, uidls []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range uidls {
		in[id] = true
	}
}

func (l *ledger) isLeaving(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaving[id]
}

// owed returns the ids acknowledged before a moment, by whom, which no session has
// deleted before this moment.
func (l *ledger) owed(before time.Time) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	owed := map[string]string{}
	for id, a := range l.ids {
		if a.at.Before(before) && !l.leaving[id] {
			owed[id] = a.host
		}
	}
	return owed
}

func (l *ledger) counts() (acked, fetched int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.messages, len(l.fetched)
}

// unfetched returns what is acknowledged and was not handed over yet.
func (l *ledger) unfetched() (all []delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d := range l.acked {
		if len(l.fetched[d]) == 0 {
			all = append(all, d)
		}
	}
	return all
}

// verdict says what came of it.
func (l *ledger) verdict(t *testing.T) {
	t.Helper()
	lost := l.unfetched()
	l.mu.Lock()
	defer l.mu.Unlock()
	duplicates, refused := 0, 0
	for d, uidls := range l.fetched {
		for _, n := range uidls {
			duplicates += n
		}
		duplicates--
		refused += max(0, len(uidls)-l.tries[d.i])
	}
	t.Logf("sent %d, acknowledged %d, deliveries fetched %d, lost %d, duplicates %d (%d of what was deleted, %d of what was refused), strict looked for %d, audits %d (%d of SYNC)",
		l.next, l.messages, len(l.fetched), len(lost), duplicates, l.again, refused, l.strict, l.audits, l.syncs)
	for _, f := range l.faults {
		t.Error(f)
	}
	if len(lost) > 0 {
		slices.SortFunc(lost, func(a, b delivery) int { return a.i - b.i })
		t.Errorf("%d acknowledged deliveries were never handed over: %v", len(lost), lost[:min(len(lost), 10)])
		for id, a := range l.ids {
			for _, d := range lost[:min(len(lost), 10)] {
				if a.i == d.i {
					t.Logf("message %d: %s, acknowledged by %s at %s, leaving %v, deleted %v", a.i, id, a.host, a.at.Format("15:04:05.000"), l.leaving[id], l.deleted[id])
				}
			}
		}
	}
	if l.messages < 20 || l.strict == 0 || l.audits == 0 || l.syncs == 0 {
		t.Error("that is too little to say anything")
	}
}
