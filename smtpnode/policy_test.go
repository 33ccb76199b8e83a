package smtpnode

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"msgw/internal/journal"
)

// Where two copies are wanted and one can be had, the sender is told before it sends: at
// MAIL if that is so for every mailbox, else at RCPT. The strictest recipient governs
// the whole transaction.
func TestPolicy(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	single := func(err error) {
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		r.store.single = err
	}
	strict := func() bool {
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		return r.store.strict
	}
	c := r.dial()
	c.dialog(envelope + "C: RCPT TO:<strict@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250")
	if !strict() {
		t.Error("a transaction with a strict recipient was committed under the other policy")
	}
	c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250")
	if strict() {
		t.Error("a transaction without a strict recipient was committed under the strict policy")
	}
	single(errors.New("state is DEGRADED"))
	c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<strict@z>\nS: 451 4.3.0 no second copy\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250")
	if strict() {
		t.Error("a recipient that was refused governed the transaction")
	}
	all := start(t, func(o *Options) { o.Mailboxes = fakeMailboxes{strict: true} })
	c = all.dial()
	c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: MAIL FROM:<>\nS: 250\nC: RSET\nS: 250")
	all.store.mu.Lock()
	all.store.single = errors.New("state is DEGRADED")
	all.store.mu.Unlock()
	c.dialog("C: MAIL FROM:<>\nS: 451 4.3.0 no second copy")
}

// A policy that becomes strict while a message comes in holds for that message.
func TestPolicyChangesMeanwhile(t *testing.T) {
	t.Parallel()
	late := &atomic.Bool{}
	r := start(t, func(o *Options) { o.Mailboxes = fakeMailboxes{late: late} })
	c := r.dial()
	c.dialog(envelope + "C: DATA\nS: 354\nC: hello")
	late.Store(true)
	c.dialog("C: .\nS: 250")
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	if !r.store.strict {
		t.Error("committed under the policy of before")
	}
}

// What is under way when the server stops waits for its copies until the grace is over,
// and no longer.
func TestStopEndsAWaitForCopies(t *testing.T) {
	t.Parallel()
	store := &waitingStore{}
	r := start(t, func(o *Options) { o.Grace, o.Store = 50*time.Millisecond, store })
	c := r.dial()
	c.dialog(envelope + "C: DATA\nS: 354\nC: hello\nC: .")
	for store.waits.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d < 40*time.Millisecond || d > 5*time.Second {
		t.Errorf("the stop took %v", d)
	}
}

// waitingStore waits for a copy that never comes.
type waitingStore struct {
	noStore
	waits atomic.Int32
}

func (*waitingStore) NewBody(journal.ID) Body { return discard{io.Discard} }

func (s *waitingStore) Commit(ctx context.Context, _ bool, _ ...Message) (int, error) {
	s.waits.Add(1)
	<-ctx.Done()
	return 0, ctx.Err()
}

type discard struct{ io.Writer }

func (discard) Discard() {}
