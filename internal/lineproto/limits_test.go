package lineproto

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
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

// A slow peer that keeps taking what is written is not a silent one.
func TestWriteIsProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c := NewConn(ours, Deadlines{Idle: time.Minute})
		var peer sync.WaitGroup
		defer peer.Wait()
		defer c.Close()
		peer.Go(func() {
			defer theirs.Close()
			for b := make([]byte, writeChunk); ; time.Sleep(40 * time.Second) {
				if _, err := io.ReadFull(theirs, b); err != nil {
					return
				}
			}
		})
		if n, err := c.Write(make([]byte, 5*writeChunk)); err != nil || n != 5*writeChunk {
			t.Errorf("wrote %d octets, %v", n, err)
		}
	})
}

func TestMinimumRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		c := NewConn(ours, Deadlines{Idle: time.Minute, MinRate: 100, RateGrace: time.Minute})
		var peer sync.WaitGroup
		defer peer.Wait()
		defer c.Close()
		peer.Go(func() {
			defer theirs.Close()
			for { // 50 octets a second
				if _, err := theirs.Write(make([]byte, 500)); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		})
		b := make([]byte, 500)
		read := func() (err error) {
			for end := time.Now().Add(2 * time.Minute); err == nil && time.Now().Before(end); {
				_, err = c.Read(b)
			}
			return err
		}
		if err := read(); err != nil {
			t.Errorf("outside a transfer: %v", err)
		}
		c.BeginTransfer()
		began := time.Now()
		if err := read(); !errors.Is(err, ErrTooSlow) || time.Since(began) < time.Minute {
			t.Errorf("in a transfer, after %v: %v", time.Since(began), err)
		}
		c.EndTransfer()
		if err := read(); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
}
