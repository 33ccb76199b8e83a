package pop3d

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slow gives octets of a message after a while, unless ctx ends.
type slow struct {
	ctx  context.Context
	wait time.Duration
	io.Reader
}

func (s slow) Read(p []byte) (int, error) {
	select {
	case <-time.After(s.wait):
		return s.Reader.Read(p)
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
}

func slowly(drop *maildrop, wait time.Duration) {
	drop.open = func(ctx context.Context, i int) (io.ReadCloser, error) {
		return io.NopCloser(slow{ctx, wait, strings.NewReader(string(drop.bodies[i]))}), nil
	}
}

// When the server stops, who waits is let go at once, and who is being served is
// served; what was sent ahead is not looked at any more.
func TestStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		drop := newMaildrop(crlfLines(500_000))
		slowly(drop, 100*time.Millisecond) // for each of 8 chunks
		s := start(t, drop, true)
		idle, silent, busy := s.client(t, true), s.dial(true), s.loggedIn(t)
		idle.script(inClear)
		busy.script("C: DELE 1", "S: +OK...", "C: RSET", "S: +OK...", octets("RETR 1\r\nDELE 1\r\nQUIT\r\n"), "S: +OK...")
		s.stop()
		start := time.Now()
		idle.script("S.")
		ends(silent)
		if got := time.Since(start); got > 0 {
			t.Errorf("idle sessions ended after %v", got)
		}
		for left := len(drop.bodies[0]); left > 0; {
			line, err := busy.read()
			if err != nil {
				t.Fatalf("%v, %d octets before the end", err, left)
			}
			if left -= len(line) + 2; left < 20_000 && busy.In.Buffered() < 74 {
				time.Sleep(3 * closeTime) // the rest is not hurried
			}
		}
		busy.script("S: .")
		if line, err := busy.read(); err == nil { // whether the notice that TLS ends comes through is left to chance
			t.Errorf("%q came behind the message", line)
		}
		<-s.done
		if got := time.Since(start); got <= 3*closeTime || got > 15*time.Second {
			t.Errorf("stopped after %v", got)
		}
		if deletes, _ := drop.state(); deletes != nil {
			t.Errorf("deleted %v", deletes)
		}
	})
}

// The grace has an end, and a message cut by it has no final dot.
func TestStopGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		drop := newMaildrop(crlfLines(5_000_000))
		slowly(drop, 5*time.Second)
		s := start(t, drop, true)
		c := s.loggedIn(t)
		c.script("C: RETR 1", "S: +OK...")
		s.stop()
		start := time.Now()
		if _, err := c.body(); err == nil {
			t.Error("the message ended")
		}
		<-s.done
		if got := time.Since(start); got < 20*time.Second || got > 22*time.Second {
			t.Errorf("stopped after %v", got)
		}
	})
}

func TestStopGraceOfWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := start(t, newMaildrop(crlfLines(1<<20)), true)
		s.loggedIn(t).script("C: RETR 1", "S: +OK...")
		s.stop()
		start := time.Now()
		<-s.done
		if got := time.Since(start); got < 20*time.Second || got > 22*time.Second {
			t.Errorf("stopped after %v", got)
		}
		if !strings.Contains(s.log.String(), `outcome="server stopped"`) {
			t.Errorf("log: %s", s.log)
		}
	})
}

// A deletion under way at the stop is answered if it became durable in time, and
// not otherwise.
func TestStopWhileDeleting(t *testing.T) {
	t.Parallel()
	for _, takes := range []time.Duration{5 * time.Second, time.Minute} {
		t.Run(takes.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				drop := three()
				drop.delete = func(ctx context.Context) error {
					select {
					case <-time.After(takes):
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				s := start(t, drop, true)
				c := s.loggedIn(t)
				c.script("C: DELE 1", "S: +OK...", "C: QUIT")
				synctest.Wait()
				s.stop()
				line, _ := c.read()
				if durable := takes < 20*time.Second; strings.HasPrefix(line, "+OK") != durable {
					t.Errorf("got %q", line)
				}
				<-s.done
			})
		})
	}
}

// A command that arrives just as the server stops is not done.
func TestStopRaces(t *testing.T) {
	t.Parallel()
	t.Run("while it is read", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := manyMessages(3)
			ctx, cancel := context.WithCancel(t.Context())
			reads := 0
			playUntil(ctx, quietServer(a), &tape{in: readerFunc(func(p []byte) (int, error) {
				if reads++; reads == 1 {
					return copy(p, login+"DELE 1\r\n"), nil
				}
				cancel()
				synctest.Wait()
				return copy(p, "QUIT\r\n"), nil
			})}, true)
			if deletes, _ := a.drops[mailbox].state(); deletes != nil || reads != 2 {
				t.Errorf("deleted %v after %d reads", deletes, reads)
			}
		})
	})
	t.Run("while the answer before it is sent", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			a := manyMessages(3)
			ctx, cancel := context.WithCancel(t.Context())
			read := false
			playUntil(ctx, quietServer(a), &tape{
				onWrite: func() { cancel(); synctest.Wait() },
				in:      readerFunc(func([]byte) (int, error) { read = true; return 0, io.EOF }),
			}, true)
			if read {
				t.Error("a command was waited for")
			}
		})
	})
}
