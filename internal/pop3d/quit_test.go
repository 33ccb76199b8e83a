package pop3d

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestQuitDeletes(t *testing.T) {
	t.Parallel()
	s := start(t, three(), false)
	s.loggedIn(t).script("C: DELE 3", "S: +OK...", "C: DELE 1", "S: +OK...", "C: QUIT", "S: +OK 2 messages deleted", "S.")
	if deletes, locked := s.drop.state(); !reflect.DeepEqual(deletes, [][]int{{0, 2}}) || locked {
		t.Errorf("deleted %v, locked %v", deletes, locked)
	}
}

func TestQuitFails(t *testing.T) {
	t.Parallel()
	drop := three()
	drop.delete = func(context.Context) error { return errors.New("the disk is full") }
	s := start(t, drop, false)
	s.loggedIn(t).script("C: DELE 3", "S: +OK...", "C: QUIT", "S: -ERR [SYS/TEMP]...", "S.")
	s.stop()
	<-s.done
	if log := s.log.String(); !strings.Contains(log, "the disk is full") || !strings.Contains(log, `outcome="delete failed"`) || !strings.Contains(log, "deleted=0") {
		t.Errorf("log: %s", log)
	}
	if got := s.metric(t, "msgw_pop3_deleted_total"); got != 0 {
		t.Errorf("%v deleted", got)
	}
}

// Whatever ends a session but QUIT after login deletes nothing, and unlocks.
func TestNothingElseDeletes(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(s *site, c *client){
		"dropped":            func(_ *site, c *client) { c.Conn.Close() },
		"dropped in QUIT":    func(_ *site, c *client) { c.send("QUIT"); c.Conn.Close() },
		"RSET":               func(_ *site, c *client) { c.script("C: RSET", "S: +OK...", "C: QUIT", "S: +OK", "S.") },
		"too many errors":    func(_ *site, c *client) { c.send(strings.Repeat("X\r\n", 11) + "QUIT\r\n") },
		"autologout":         func(*site, *client) { time.Sleep(10*time.Minute + 2*time.Second) },
		"the server stops":   func(s *site, _ *client) { s.stop() },
		"stops, then QUIT":   func(s *site, c *client) { s.stop(); synctest.Wait(); c.Conn.Write([]byte("QUIT\r\n")) },
		"QUIT with argument": func(_ *site, c *client) { c.script("C: QUIT 1", "S: -ERR..."); c.Conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := start(t, three(), true)
				c := s.loggedIn(t)
				c.script("C: DELE 1", "S: +OK...")
				end(s, c)
				go func() { // a peer that still reads, so that nothing waits for it
					for {
						if _, err := c.In.ReadByte(); err != nil {
							return
						}
					}
				}()
				time.Sleep(time.Minute)
				if deletes, locked := s.drop.state(); deletes != nil || locked {
					t.Errorf("deleted %v, locked %v", deletes, locked)
				}
			})
		})
	}
}

// ends returns how long the server keeps a connection of which it hears nothing.
func ends(conn net.Conn) time.Duration {
	start := time.Now()
	for b := make([]byte, 512); ; {
		if _, err := conn.Read(b); err != nil {
			return time.Since(start)
		}
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		run  func(s *site, t *testing.T) time.Duration
		want time.Duration
	}{
		{"silent before login", func(s *site, t *testing.T) time.Duration { return ends(s.client(t, false).Conn) }, time.Minute},
		{"silent handshake", func(s *site, t *testing.T) time.Duration { return ends(s.dial(true)) }, 15 * time.Second},
		{"silent after login", func(s *site, t *testing.T) time.Duration { return ends(s.loggedIn(t).Conn) }, 10 * time.Minute},
		{"slow before login", func(s *site, t *testing.T) time.Duration {
			conn := s.dial(false)
			go func() {
				for { // one endless line
					if _, err := conn.Write([]byte("x")); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}()
			took := ends(conn)
			time.Sleep(2 * time.Second) // the writer has seen it too
			return took
		}, 3 * time.Minute},
		{"talking after login", func(s *site, t *testing.T) time.Duration {
			c := s.loggedIn(t)
			start := time.Now()
			for range 10 {
				time.Sleep(9 * time.Minute)
				c.script("C: NOOP", "S: +OK")
			}
			return time.Since(start)
		}, 90 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				if got := tt.run(start(t, three(), true), t); got < tt.want || got > tt.want+closeTime {
					t.Errorf("%v, want %v", got, tt.want)
				}
			})
		})
	}
}

// A client that does not take what it asked for is let go long before autologout.
func TestStuckClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		drop := newMaildrop(crlfLines(1 << 20))
		c := start(t, drop, true).loggedIn(t)
		c.script("C: RETR 1", "S: +OK...")
		time.Sleep(time.Minute + 2*closeTime)
		if _, locked := drop.state(); locked {
			t.Error("still locked")
		}
	})
}

func TestFailureDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := start(t, three(), true)
		c := s.client(t, true)
		c.script(inClear)
		for i := range 3 {
			start := time.Now()
			c.script("C: AUTH PLAIN "+sasl("", mailbox, "wrong"), "S: -ERR [AUTH]...")
			if got, want := time.Since(start), time.Duration(i+1)*500*time.Millisecond; got != want {
				t.Errorf("failure %d answered after %v, want %v", i, got, want)
			}
		}
		c.script("S.")

		// A stop does not wait for it.
		c = s.client(t, true)
		c.script(inClear, "C: AUTH PLAIN "+sasl("", mailbox, "wrong"))
		time.Sleep(time.Millisecond)
		stopped := time.Now()
		s.stop()
		c.script("S.")
		<-s.done
		if got := time.Since(stopped); got > 0 {
			t.Errorf("stopped after %v", got)
		}
	})
}

// Logins are refused without asking once too many failed.
func TestThrottledLogin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := start(t, three(), true, func(o *Options) { o.Throttle = Throttle{Address: 4, Window: 4 * time.Minute} })
		for range 4 {
			s.client(t, true).script(inClear, "C: AUTH PLAIN "+sasl("", mailbox, "wrong"), "S: -ERR [AUTH]...", "C: QUIT", "S: +OK", "S.")
		}
		right := "C: AUTH PLAIN " + sasl("", mailbox, password)
		s.client(t, true).script(inClear, right, "S: -ERR [SYS/TEMP] too many failed logins...", "C: QUIT", "S: +OK", "S.")
		if got := len(s.tried()); got != 4 {
			t.Errorf("%d logins tried, want 4", got)
		}
		if got := s.metric(t, "msgw_pop3_logins_total", "throttled"); got != 1 {
			t.Errorf("%v throttled", got)
		}
		time.Sleep(time.Minute)
		s.client(t, true).script(inClear, right, "S: +OK...", "C: QUIT", "S: +OK", "S.")
	})
}

// Who has logged in from an address is not locked out by failures of others.
func TestKnownIsNotThrottled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := start(t, three(), true, func(o *Options) { o.Throttle.User = 1 })
		wrong, right := "C: AUTH PLAIN "+sasl("", mailbox, "wrong"), "C: AUTH PLAIN "+sasl("", mailbox, password)
		s.client(t, true).script(inClear, wrong, "S: -ERR [AUTH]...", right, "S: -ERR [SYS/TEMP]...", "C: QUIT", "S: +OK", "S.")
		time.Sleep(10 * time.Minute)
		s.client(t, true).script(inClear, wrong, "S: -ERR [AUTH]...", "C: QUIT", "S: +OK", "S.")
		time.Sleep(10 * time.Minute)
		s.client(t, true).script(inClear, right, "S: +OK...", "C: QUIT", "S: +OK", "S.")
		s.client(t, true).script(inClear, wrong, "S: -ERR [AUTH]...", right, "S: +OK...", "C: QUIT", "S: +OK", "S.")
	})
}

// The maildrop is unlocked when the answer to QUIT is on its way.
func TestQuitUnlocksFirst(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"QUIT\r\n", "DELE 1\r\nQUIT\r\n"} {
		a := manyMessages(3)
		drop := a.drops[mailbox]
		c := &tape{in: strings.NewReader(login + in), keep: true}
		c.onWrite = func() {
			if _, locked := drop.state(); locked {
				t.Error("still locked")
			}
		}
		play(quietServer(a), c, true)
		if !strings.Contains(c.out.String(), "+OK") {
			t.Errorf("got %q", c.out.String())
		}
	}
}

// A client that does not take the last answer keeps nothing.
func TestStuckAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := start(t, three(), true)
		c := s.client(t, true)
		c.script(inClear, octets(strings.Repeat("X\r\n", 10)))
		time.Sleep(2 * closeTime)
		if got := s.metric(t, "msgw_pop3_sessions"); got != 0 {
			t.Errorf("%v sessions", got)
		}
	})
}
