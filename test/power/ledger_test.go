//go:build power

package power

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"msgw/internal/lab/report"
)

// ledger knows what was sent, acknowledged and deleted, whatever becomes of the machine.
type ledger struct {
	seed uint64

	mu      sync.Mutex
	letters []letter // by number
	acked   int
	deleted int
	back    map[int]bool // those whose deletion was acknowledged and that were seen again
}

type letter struct {
	sum   [sha256.Size]byte
	acked bool // the sender was told 250
	fate  fate
}

// fate says what a message may be after the next cut.
type fate int

const (
	held    fate = iota // there, if it was acknowledged
	maybe               // QUIT was said, and not answered: there or not
	deleted             // QUIT was answered
)

// write makes the next message.
func (l *ledger) write(rng *rand.Rand) (int, []byte) {
	size := 1<<10 + rng.IntN(8<<10)
	switch n := rng.IntN(10); {
	case n < 1: // lies in a file of its own
		size = 1<<20 + rng.IntN(256<<10)
	case n < 4:
		size = 60<<10 + rng.IntN(30<<10)
	}
	l.mu.Lock()
	i := len(l.letters)
	l.letters = append(l.letters, letter{})
	l.mu.Unlock()
	msg := report.New(l.seed, i, size)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.letters[i].sum = sha256.Sum256(msg)
	return i, msg
}

func (l *ledger) ack(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.letters[i].acked = true
	l.acked++
}

func (l *ledger) acks() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// identify says which message was fetched. An error says that it is not what was sent.
func (l *ledger) identify(msg []byte) (int, error) {
	seed, i, ok := report.Identify(msg)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ok || seed != l.seed || i < 0 || i >= len(l.letters) {
		return 0, fmt.Errorf("%d octets that nobody sent", len(msg))
	}
	if sha256.Sum256(msg) != l.letters[i].sum {
		return i, fmt.Errorf("message %d came back changed, with %d octets", i, len(msg))
	}
	return i, nil
}

func (l *ledger) set(f fate, messages []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range messages {
		if l.letters[i].fate = f; f == deleted {
			l.deleted++
		}
	}
}

// found takes in what is there after a cut. It returns what is lost: acknowledged, not
// deleted, and not found. A deletion that was not answered and did not happen is one
// that never will.
func (l *ledger) found(there map[int]int) (lost []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.letters {
		x := &l.letters[i]
		switch {
		case there[i] == 0 && x.fate == held && x.acked:
			lost = append(lost, i)
		case there[i] > 0 && x.fate == maybe:
			x.fate = held
		case there[i] > 0 && x.fate == deleted:
			l.back[i] = true
		}
	}
	return lost
}

// returned are the messages that came back after their deletion.
func (l *ledger) returned() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []int
	for i := range l.back {
		list = append(list, i)
	}
	slices.Sort(list)
	return list
}
