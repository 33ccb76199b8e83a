package lineproto

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// waited runs f, which must end with a deadline, and returns how long it took.
func waited(t *testing.T, f func([]byte) (int, error)) time.Duration {
	t.Helper()
	start := time.Now()
	if _, err := f(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a deadline", err)
	}
	return time.Since(start)
}

func TestSetLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c := NewConn(ours, Deadlines{Idle: time.Minute, Session: 90 * time.Second})
		defer c.Close()
		for _, want := range []time.Duration{time.Minute, 30 * time.Second} {
			if got := waited(t, c.Read); got != want {
				t.Errorf("before: read for %v, want %v", got, want)
			}
		}
		c.SetLimits(Deadlines{Idle: 10 * time.Minute, Write: time.Second})
		if got := waited(t, c.Read); got != 10*time.Minute {
			t.Errorf("after: read for %v", got)
		}
		if got := waited(t, c.Write); got != time.Second {
			t.Errorf("after: write for %v", got)
		}
		c.SetLimits(Deadlines{Idle: 2 * time.Second})
		if got := waited(t, c.Write); got != 2*time.Second {
			t.Errorf("no limit of its own: write for %v", got)
		}
	})
}

// stopInside calls f once, between the choice of a deadline and its setting.
type stopInside struct {
	net.Conn
	f func()
}

func (s *stopInside) SetReadDeadline(t time.Time) error {
	if f := s.f; f != nil {
		s.f = nil
		f()
	}
	return s.Conn.SetReadDeadline(t)
}

func TestCloseByHoldsAgainstARead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		s := &stopInside{Conn: ours}
		c := NewConn(s, Deadlines{Idle: 10 * time.Minute})
		defer c.Close()
		s.f = func() { c.CloseBy(time.Now().Add(time.Second)) }
		if got := waited(t, c.Read); got != time.Second {
			t.Errorf("read for %v after CloseBy, want 1s", got)
		}
	})
}
