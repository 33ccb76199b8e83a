package pop3d

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// When all places are taken, who is logged in keeps the place, and who is not makes room:
// silent, within a handshake, or kept waiting for a wrong password.
func TestStrangersMakeRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := start(t, three(), true, func(o *Options) { o.Limits.Total, o.FailureDelay = 4, time.Minute })
		archive := s.loggedIn(t)
		silent := s.client(t, false)
		silent.script(inClear)
		time.Sleep(time.Second)
		shaking := s.dial(true)
		time.Sleep(time.Second)
		guessing := s.client(t, true)
		guessing.script("S: +OK msgw...", "C: USER "+mailbox, "S: +OK...", "C: PASS wrong")
		time.Sleep(time.Second)
		for _, ended := range []func(){
			func() { silent.script("S.") },
			func() { ends(shaking) },
			func() { guessing.script("S.") },
		} {
			time.Sleep(time.Second)
			next := s.client(t, false)
			next.script(inClear)
			start := time.Now()
			ended()
			if d := time.Since(start); d > 2*closeTime {
				t.Errorf("it ended after %v", d)
			}
		}
		archive.script("C: RETR 1", "S: +OK...")
		if _, err := archive.body(); err != nil {
			t.Error(err)
		}
		archive.script("C: QUIT", "S: +OK...", "S.")
		synctest.Wait()
		if n := strings.Count(s.log.String(), string(endMadeRoom)); n != 2 { // the handshake failed by its own account
			t.Errorf("%d sessions made room by the log:\n%s", n, s.log)
		}
	})
}
