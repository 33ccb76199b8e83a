package raftstore

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// raftLog opens the raft log of a member that does not run.
func (m *member) raftLog(f func(logStore)) {
	m.t.Helper()
	logs, snaps, err := openLogs(m.dir, raftLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		m.t.Fatal(err)
	}
	f(logStore{logs, snaps})
	if err := logs.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// A node that crashed between the two writes of an overwritten log was not set back.
func TestCrashWhileTheLogIsOverwritten(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	w := c.join(a, "witness", Witness)
	c.epochs()
	a.must(mailbox(1))
	within(t, 5*time.Second, "msgw2 has it", func() bool { return b.store.Position().Index == a.store.Position().Index })
	b.close()
	// msgw2 once led, and wrote an entry that nobody took.
	b.raftLog(func(logs logStore) {
		last, err := logs.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		term, err := logs.GetUint64([]byte("CurrentTerm"))
		if err != nil {
			t.Fatal(err)
		}
		if err := logs.SetUint64([]byte("CurrentTerm"), term+1); err != nil {
			t.Fatal(err)
		}
		l := entry(mailbox(99))
		l.Index, l.Term = last+1, term+1
		if err := logs.StoreLog(l); err != nil {
			t.Fatal(err)
		}
		end := LogEnd{Term: term + 1, LastTerm: term + 1, LastIndex: last + 1}
		for _, m := range []*member{a, w} { // they saw it when it asked them
			m.store.reached.note(b.node.ID, end)
		}
		// A leader of a newer term has it dropped, and then the power fails.
		if err := logs.SetUint64([]byte("CurrentTerm"), term+2); err != nil {
			t.Fatal(err)
		}
		if err := logs.DeleteRange(last+1, last+1); err != nil {
			t.Fatal(err)
		}
	})
	b.open()
	c.epochs()
	within(t, 20*time.Second, "msgw2 takes part", func() bool { return b.store.Status().Quorum || b.store.Renounced() != nil })
	if r := b.store.Renounced(); r != nil {
		t.Errorf("refused: %s", r.Why)
	}
	b.must(mailbox(2))
}

// A node that begins from its file, because its log is gone or was not there yet, is
// still the continuation of what the other one has.
func TestReturnAfterTheLogWasLost(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	c.epochs()
	for n := range 5 {
		a.must(mailbox(1 + n))
	}
	within(t, 5*time.Second, "msgw2 has it", func() bool { return b.store.Position().Index == a.store.Position().Index })
	b.close()
	old, err := LoadState(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	a.close()
	if err := os.RemoveAll(filepath.Join(a.dir, raftDir)); err != nil {
		t.Fatal(err)
	}
	a.open()
	a.recover("both disks are bad")
	if r := old.Line().Relate(a.store.State().Line()); r != Ancestor {
		t.Errorf("the old node is %s", r)
	}
	if e := a.store.State().Lineage[0]; e.Index != old.Index || e.Hash != old.Hash {
		t.Errorf("%+v, the parent ended at %d %s", e, old.Index, old.Hash)
	}
}

// A node whose disk was set back to when it was alone hears of it from the other one's
// report: no raft connection is possible between them.
func TestSetBackToWhenItWasAlone(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	a.close()
	copied := a.copyOf()
	a.open()
	b := c.join(a, "msgw2", Site)
	c.epochs()
	a.must(mailbox(1))
	within(t, 5*time.Second, "msgw2 has it", func() bool { return b.store.Reached(a.node.ID).LastIndex >= a.store.Position().Index })
	b.stream.setCut(true)
	a.close()
	a.dir = copied
	a.open()
	a.store.Compare("msgw2", b.store.Position())
	within(t, 10*time.Second, "msgw1 renounces", func() bool { return a.store.Renounced() != nil })
}

// A connection that is refused leaves nothing behind.
func TestRefusedConnectionsAreForgotten(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	x, _ := a.store.streams.now()
	for range 20 {
		conn, err := net.Dial("tcp", a.node.Peer)
		if err != nil {
			t.Fatal(err)
		}
		if err := say(conn, greeting{ID: "id-of-nobody", Epoch: "another"}); err != nil {
			t.Fatal(err)
		}
		if _, err := hear(conn); err == nil {
			t.Error("an answer in another epoch")
		}
		conn.Close()
	}
	within(t, 5*time.Second, "nothing is kept", func() bool {
		x.liveMu.Lock()
		defer x.liveMu.Unlock()
		return len(x.live) == 0
	})
}

// A node that was never confirmed does not say that it was.
func TestNeverConfirmed(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	a.close()
	b.close()
	a.open()
	if at := a.store.Status().Confirmed; !at.IsZero() {
		t.Errorf("confirmed at %v", at)
	}
}

// Nothing begins when the store is closed, and nobody waits for it without end.
func TestRecoverDuringClose(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	w := c.join(a, "witness", Witness)
	c.epochs()
	a.close()
	within(t, 10*time.Second, "no quorum", func() bool { return !w.store.Status().Quorum })
	s := w.store
	out := make(chan error, 1)
	// A witness leads no epoch in, so this waits.
	go func() { out <- s.Recover(context.Background(), "msgw1 is gone") }()
	within(t, 5*time.Second, "it waits", func() bool { return s.recovering() != nil && s.leads() })
	w.close()
	select {
	case err := <-out:
		if !errors.Is(err, errClosed) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Recover waits for a closed store")
	}
	if err := s.Recover(t.Context(), "again"); !errors.Is(err, errClosed) || s.run.Load() != nil {
		t.Errorf("raft runs in a closed store: %v, %v", s.run.Load() != nil, err)
	}
}

// The copy of raft's directory is that of the recovery at hand, also where two epochs of
// two lineages have the same number.
func TestArchivesOfTwoLineages(t *testing.T) {
	t.Parallel()
	c, a := start(t)
	b := c.join(a, "msgw2", Site)
	c.epochs()
	a.close()
	stale := filepath.Join(b.dir, raftDir+".before-epoch-2")
	if err := os.Mkdir(stale, 0o700); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "no quorum", func() bool { return !b.store.Status().Quorum })
	before := b.store.State()
	b.recover("msgw1 is gone")
	got, err := LoadArchived(b.dir, b.store.State().Epoch)
	if err != nil || got.Hash != before.Hash {
		t.Errorf("%+v %v", got, err)
	}
}
