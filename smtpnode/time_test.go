package smtpnode

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/journal"
	"msgw/internal/lineproto"
)

// sink is a session that only reads.
type sink struct{ err error }

func (s *sink) Reset()                               {}
func (s *sink) Logout() error                        { return nil }
func (s *sink) Mail(string, *smtp.MailOptions) error { return nil }
func (s *sink) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (s *sink) Data(r io.Reader) error               { _, s.err = io.Copy(io.Discard, r); return s.err }

type noStore struct{ Store }

func (noStore) Err() error       { return nil }
func (noStore) Room(int64) error { return nil }
func (noStore) NewBody(journal.ID) Body {
	panic("not used")
}

// timed runs a session over a pipe in virtual time. f plays the peer; it is given
// the reader of what the server says.
func timed(t *testing.T, d lineproto.Deadlines, f func(c net.Conn, r *bufio.Reader)) time.Duration {
	var took time.Duration
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		s := New(Options{Host: "mx.example.org", Store: noStore{}, Deadlines: d})
		s.newSession = func(*conn) smtp.Session { return &sink{} }
		start := time.Now()
		done := make(chan struct{})
		go func() {
			s.Handle(context.Background(), ours)
			took = time.Since(start)
			ours.Close()
			close(done)
		}()
		r := bufio.NewReader(theirs)
		r.ReadString('\n')
		f(theirs, r)
		io.Copy(io.Discard, r)
		theirs.Close()
		<-done
	})
	return took
}

func say(c net.Conn, r *bufio.Reader, line string) string {
	io.WriteString(c, line+"\r\n")
	for {
		l, err := r.ReadString('\n')
		if err != nil || len(l) < 4 || l[3] != '-' {
			return l
		}
	}
}

func TestTimeLimits(t *testing.T) {
	t.Parallel()
	limits := lineproto.Deadlines{Idle: 5 * time.Minute, Session: time.Hour, MinRate: 1 << 10, RateGrace: time.Minute}
	open := func(c net.Conn, r *bufio.Reader) {
		for _, l := range []string{"EHLO x", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA"} {
			say(c, r, l)
		}
	}
	for name, tc := range map[string]struct {
		peer     func(net.Conn, *bufio.Reader)
		min, max time.Duration
	}{
		"silent":            {func(net.Conn, *bufio.Reader) {}, 5 * time.Minute, 5*time.Minute + 3*time.Second},
		"silent in message": {open, 5 * time.Minute, 6 * time.Minute},
		"trickling": {func(c net.Conn, r *bufio.Reader) {
			open(c, r)
			for { // an octet a second is progress, and too slow all the same
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, time.Minute, time.Minute + 5*time.Second},
		"slow but enough": {func(c net.Conn, r *bufio.Reader) {
			open(c, r)
			line := strings.Repeat("x", 4094) + "\r\n"
			for range 200 {
				c.Write([]byte(line))
				time.Sleep(3 * time.Second)
			}
			if got := say(c, r, "."); !strings.HasPrefix(got, "250") {
				t.Errorf("slow but enough: %q", got)
			}
			say(c, r, "QUIT")
		}, 600 * time.Second, 610 * time.Second},
		"chatting for ever": {func(c net.Conn, r *bufio.Reader) {
			for strings.HasPrefix(say(c, r, "NOOP"), "250") {
				time.Sleep(time.Minute)
			}
		}, time.Hour, time.Hour + 3*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if took := timed(t, limits, tc.peer); took < tc.min || took > tc.max {
				t.Errorf("took %v, want %v to %v", took, tc.min, tc.max)
			}
		})
	}
}
