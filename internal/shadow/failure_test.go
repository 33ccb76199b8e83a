package shadow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/journal"
)

// One id twice in a commit, or one that is held, is refused, and what is known of the
// message that has it stays known.
func TestIDIsTakenOnce(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		message := func(id journal.ID, n uint64) Message {
			b := p.ship.NewBody(id)
			_, _ = b.Write(octets(n, 1000))
			return Message{journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now()}, b}
		}
		id := journal.NewID()
		if _, err := p.ship.Commit(t.Context(), false, message(id, 1), message(id, 1)); !errors.Is(err, journal.ErrHeld) {
			t.Errorf("one id twice: %v", err)
		}
		p.network(refused)
		id = p.must(1, 1000)
		if _, err := p.ship.Commit(t.Context(), false, message(id, 2)); !errors.Is(err, journal.ErrHeld) {
			t.Errorf("an id that is held: %v", err)
		}
		if r := p.ship.Report(); r.Single != 1 {
			t.Errorf("the message is not known to have one copy: %+v", r)
		}
	})
}

// A refused message that cannot be dropped may be listed later; its sender must not be
// told otherwise.
func TestRefusedAndNotDropped(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(silent)
		done := make(chan error)
		go func() {
			_, err := p.give(true, 1, 1000)
			done <- err
		}()
		time.Sleep(time.Second)
		p.ownerDisk.set(func() { p.ownerDisk.full = true })
		if err := <-done; err == nil || errors.Is(err, ErrSingle) {
			t.Errorf("%v", err)
		}
	})
}

// After the holder's disk was full, strict messages are taken again, although there was
// nothing to send that would show that there is room.
func TestStrictIsTakenAgain(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.holderDisk.set(func() { p.holderDisk.full = true })
		start := time.Now()
		if _, err := p.give(true, 1, 1000); !errors.Is(err, ErrSingle) {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("refused after %v", d)
		}
		time.Sleep(10 * time.Second)
		if s := p.ship.Report().State; s != Degraded {
			t.Errorf("state is %s while the disk is full", s)
		}
		p.holderDisk.set(func() { p.holderDisk.full = false })
		p.becomes(Sync, 10*time.Second)
		if _, err := p.give(true, 2, 1000); err != nil {
			t.Error(err)
		}
	})
}

// A holder whose journal has failed cannot act on deletions either. That is no reason
// to give the link up, which would keep senders waiting.
func TestStoppedHolder(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		id := p.must(1, 1000)
		p.holderDisk.set(func() { p.holderDisk.broken = true })
		p.must(2, 1000)
		if err := p.own.Delete(id); err != nil {
			t.Fatal(err)
		}
		p.ship.Deleted()
		time.Sleep(5 * time.Second)
		for n := range uint64(3) {
			start := time.Now()
			p.must(3+n, 1000)
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("taken after %v", d)
			}
		}
		if r := p.ship.Report(); r.State != Degraded || r.Trouble == "" {
			t.Errorf("%+v", r)
		}
	})
}

// A deletion that the holder cannot act on says that it does not store.
func TestRefusedDeletion(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		id := p.must(1, 1000)
		p.holderDisk.set(func() { p.holderDisk.full = true })
		if err := p.own.Delete(id); err != nil {
			t.Fatal(err)
		}
		p.ship.Deleted()
		p.becomes(Degraded, 4*time.Second)
		p.holderDisk.set(func() { p.holderDisk.full = false })
		p.becomes(Sync, 10*time.Second)
		if _, ok := p.held.Has(id); ok {
			t.Error("it is still held")
		}
	})
}

// What is taken with one copy is known to have one, while the other is on its way too.
func TestSingleIsKnownAtOnce(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.holderDisk.set(func() { p.holderDisk.full = true })
		p.must(1, 1000)
		p.becomes(Degraded, time.Second)
		release := make(chan struct{})
		p.holderDisk.set(func() { p.holderDisk.full, p.holderDisk.held = false, release })
		p.must(2, 1000)
		if r := p.ship.Report(); r.Single != 2 {
			t.Errorf("%+v", r)
		}
		close(release)
		p.becomes(Sync, 10*time.Second)
	})
}

// While the holder stores nothing, what is missing is not sent again and again.
func TestBacklogWaitsForRoom(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.holderDisk.set(func() { p.holderDisk.full = true })
		for n := range uint64(100) {
			p.must(n, 100_000)
		}
		before := p.carried()
		time.Sleep(10 * time.Second)
		if n := p.carried() - before; n > 15_000_000 {
			t.Errorf("%d octets were sent in 10 s", n)
		}
		p.holderDisk.set(func() { p.holderDisk.full = false })
		p.becomes(Sync, 30*time.Second)
	})
}

// An idle connection that has ended leaves nothing behind; synctest sees it.
func TestIdleLaneEnds(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.must(1, 600_000)
		p.mu.Lock()
		for _, c := range p.conns[1:] { // all but the main one
			c.Close()
		}
		p.mu.Unlock()
		time.Sleep(time.Second)
		p.must(2, 600_000)
	})
}

// A large message that comes in slowly stays on its way.
func TestSlowLargeMessage(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		id := journal.NewID()
		b := p.ship.NewBody(id)
		defer b.Discard()
		content := octets(1, 900_000)
		for part := content; len(part) > 0; part = part[300_000:] {
			if _, err := b.Write(part[:300_000]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * laneIdle)
		}
		if b.failed || b.stream == nil {
			t.Error("it is not on its way any more")
		}
		meta := journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now()}
		if _, err := p.ship.Commit(t.Context(), true, Message{meta, b}); err != nil {
			t.Fatal(err)
		}
		holds(t, p.held, id, 1, 900_000)
	})
}

// Nothing is called SYNC while a message has to be sent once more, also one whose way
// broke while it came in.
func TestNotInSyncWhileSendingOnceMore(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		id := journal.NewID()
		b := p.ship.NewBody(id)
		defer b.Discard()
		content := octets(1, 900_000)
		write := func(part []byte) {
			if _, err := b.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		write(content[:400_000])
		p.network(refused)
		time.Sleep(100 * time.Millisecond)
		write(content[400_000:])
		if !b.failed {
			t.Fatal("its way did not break")
		}
		p.network(whole)
		p.becomes(Sync, 5*time.Second)
		release := make(chan struct{})
		p.holderDisk.set(func() { p.holderDisk.held = release })
		done := make(chan error)
		go func() {
			meta := journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now()}
			_, err := p.ship.Commit(context.Background(), true, Message{meta, b})
			done <- err
		}()
		synctest.Wait()
		if r := p.ship.Report(); r.State != CatchUp || r.Single != 1 {
			t.Errorf("while it is sent once more: %+v", r)
		}
		close(release)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if r := p.ship.Report(); r.State != Sync || r.Single != 0 {
			t.Errorf("once it is sent: %+v", r)
		}
	})
}

// Run returns when it should, whatever is under way.
func TestRunEndsWithMessagesUnderWay(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		release := make(chan struct{})
		p.holderDisk.set(func() { p.holderDisk.held = release })
		var wg sync.WaitGroup
		for _, size := range []int{1000, 600_000} {
			wg.Go(func() { _, _ = p.give(true, 1, size) })
		}
		time.Sleep(time.Second)
		start := time.Now()
		stop := p.stopOwner
		p.stopOwner = nil
		stop()
		if d := time.Since(start); d > time.Second {
			t.Errorf("Run returned after %v", d)
		}
		wg.Wait()
		close(release)
	})
}

// A slow backlog does not hold up what somebody waits for, nor deletions.
func TestBacklogHoldsNothingUp(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(refused)
		gone := p.must(1, 1000)
		for n := range uint64(30) {
			p.must(2+n, 100_000)
		}
		p.endOwner()
		p.bandwidth = 10_000
		p.network(whole)
		p.startOwner()
		p.becomes(CatchUp, 5*time.Second)
		time.Sleep(15 * time.Second)
		if err := p.own.Delete(gone); err != nil {
			t.Fatal(err)
		}
		p.ship.Deleted()
		p.within(5*time.Second, "the deletion is told", func() error {
			if n := len(p.own.Graves()); n > 0 {
				return fmt.Errorf("%d are not", n)
			}
			return nil
		})
		// The first try of this one fails; it is sent again from the journal.
		p.holderDisk.set(func() { p.holderDisk.full = true })
		done := make(chan error)
		go func() {
			_, err := p.give(true, 100, 1000)
			done <- err
		}()
		time.Sleep(500 * time.Millisecond)
		p.holderDisk.set(func() { p.holderDisk.full = false })
		start := time.Now()
		if err := <-done; err != nil || time.Since(start) > 2*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if s := p.ship.Report(); s.Single < 10 {
			t.Errorf("the backlog was sent too fast: %+v", s)
		}
		p.becomes(Sync, 10*time.Minute)
	})
}

// A message of this site that cannot be read does not hold up the others.
func TestDamagedMessageHoldsNothingUp(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		p.network(refused)
		damaged := p.must(1, 50_000)
		var others []journal.ID
		for n := range uint64(20) {
			others = append(others, p.must(2+n, 50_000))
		}
		segments, err := filepath.Glob(filepath.Join(p.ownerDir, "journal", "*", "*.seg"))
		if err != nil || len(segments) != 1 {
			t.Fatal(segments, err)
		}
		b, err := os.ReadFile(segments[0])
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(b, octets(1, 50_000))
		f, err := os.OpenFile(segments[0], os.O_RDWR, 0)
		if err == nil {
			_, err = f.WriteAt([]byte{^b[at]}, int64(at))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		p.network(whole)
		time.Sleep(5 * time.Second)
		for n, id := range others {
			holds(t, p.held, id, uint64(2+n), 50_000)
		}
		if _, ok := p.held.Has(damaged); ok {
			t.Error("the damaged message was sent")
		}
		if r := p.ship.Report(); r.State != CatchUp || r.Single != 1 || r.Trouble != "" {
			t.Errorf("%+v", r)
		}
	})
}

// More large messages than may be under way are no trouble of the other site's.
func TestManyLargeMessages(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		var bodies []*Body
		for range maxLarge {
			b := p.ship.NewBody(journal.NewID())
			bodies = append(bodies, b)
			if _, err := b.Write(octets(0, 300_000)); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		if _, err := p.give(true, 1, 600_000); err != nil || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if r := p.ship.Report(); r.Trouble != "" {
			t.Errorf("%+v", r)
		}
		for _, b := range bodies {
			b.Discard()
		}
		if l := p.ship.current(); l.large != 0 || len(l.lanes) > maxIdle {
			t.Errorf("%d are under way, on %d connections", l.large, len(l.lanes))
		}
	})
}

// A commit of several messages of which one cannot be confirmed takes none.
func TestAllOrNone(t *testing.T) {
	story(t, func(t *testing.T, p *pair) {
		p.becomes(Sync, 5*time.Second)
		var ms []Message
		for n := range uint64(3) {
			id := journal.NewID()
			b := p.ship.NewBody(id)
			_, _ = b.Write(octets(n, 1000))
			ms = append(ms, Message{journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now()}, b})
		}
		// The other site holds another message under the id of the second.
		b := p.held.NewBody(ms[1].Meta.ID)
		_, _ = b.Write(octets(99, 1000))
		if err := p.held.Commit(journal.Message{Meta: ms[1].Meta, Body: b}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.ship.Commit(ctx, true, ms...); err == nil {
			t.Error("taken")
		}
		if n := len(p.own.List("mbx-1")); n != 0 {
			t.Errorf("%d messages are listed", n)
		}
		for _, m := range ms {
			m.Body.Discard() // after Commit it does nothing
		}
		p.within(time.Minute, "the copies are dropped", func() error {
			for _, i := range []int{0, 2} {
				if _, ok := p.held.Has(ms[i].Meta.ID); ok {
					return errors.New("held")
				}
			}
			return nil
		})
		if _, err := p.ship.Commit(t.Context(), true); err != nil {
			t.Errorf("no message at all: %v", err)
		}
		// A caller who has gone is told what is true: taken at both sites, or dropped.
		id := journal.NewID()
		gone := p.ship.NewBody(id)
		_, _ = gone.Write(octets(5, 1000))
		<-ctx.Done()
		copies, err := p.ship.Commit(ctx, true, Message{journal.Meta{ID: id, Mailbox: "mbx-1", Key: "0123456789abcdef", Received: time.Now()}, gone})
		want := 0
		switch {
		case err == nil && copies == 2:
			want = 1
		case !errors.Is(err, ErrSingle):
			t.Errorf("%d copies, %v", copies, err)
		}
		time.Sleep(2 * time.Minute)
		if n := len(p.own.List("mbx-1")); n != want {
			t.Errorf("%d messages are listed, expected %d", n, want)
		}
		if _, held := p.held.Has(id); held != (want == 1) {
			t.Errorf("the copy is held: %v, expected %v", held, want == 1)
		}
	})
}
