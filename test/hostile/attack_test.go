//go:build hostile

package hostile

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"msgw/internal/lab"
)

// attack is everything that strangers do to a site at the same time.
type attack struct {
	t      *testing.T
	site   site
	known  lab.Mailbox // whose address the attackers know, but not its password
	own    lab.Mailbox // that is theirs
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	kinds  []*kind
}

// kind is one way to attack.
type kind struct {
	name    string
	workers int
	every   time.Duration // least time from one run of a worker to its next
	run     func(x *attacker)

	runs, failed, refused, octets atomic.Int64
}

// attacker is one worker of a kind, with an address of its own or shared by a few.
type attacker struct {
	*attack
	*kind
	from net.IP
	c    net.Conn
	r    *bufio.Reader
	keep func() bool // of c from being closed when the attack ends
}

func newAttack(t *testing.T, s site, known, own lab.Mailbox) *attack {
	a := &attack{t: t, site: s, known: known, own: own}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	t.Cleanup(a.end)
	of := regexp.MustCompile(*only)
	for _, k := range append(smtpKinds(), pop3Kinds()...) {
		if of.MatchString(k.name) {
			a.kinds = append(a.kinds, k)
		}
	}
	return a
}

func (a *attack) begin() {
	a.prepare()
	for i, k := range a.kinds {
		for w := range k.workers {
			// Each kind has networks of its own, with 50 workers from each of 5 addresses
			// in each: what one network, or one address, may have is less than all.
			from := net.IPv4(127, byte(200+i), byte(w/250), byte(1+w%5))
			a.wg.Go(func() { a.work(&attacker{attack: a, kind: k, from: from}, w) })
		}
	}
}

func (a *attack) work(x *attacker, w int) {
	// They do not all come in the same moment.
	wait := time.Duration(w) * min(x.every, 4*time.Second) / time.Duration(x.workers)
	for {
		select {
		case <-time.After(wait):
		case <-a.ctx.Done():
			return
		}
		if a.ctx.Err() != nil {
			return
		}
		start := time.Now()
		x.runs.Add(1)
		x.run(x)
		x.hangUp()
		wait = max(0, x.every-time.Since(start))
	}
}

func (a *attack) end() {
	a.cancel()
	a.wg.Wait()
}

// peaks are the most connections seen.
type peaks struct{ smtp, pop3 int }

// watch looks at the site's connections for a time.
func (a *attack) watch(d time.Duration) (p peaks) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		smtp, pop3 := a.site.connections()
		p.smtp, p.pop3 = max(p.smtp, smtp), max(p.pop3, pop3)
	}
	return p
}

// report says what was done, and fails the test if some of it was not.
func (a *attack) report() {
	a.t.Helper()
	for _, k := range a.kinds {
		a.t.Logf("%-34s %6d times by %4d, %6d could not connect, %6d refused, %8d KiB sent", k.name, k.runs.Load(), k.workers, k.failed.Load(), k.refused.Load(), k.octets.Load()>>10)
		if k.failed.Load() > k.runs.Load()/2 {
			a.t.Errorf("%s: mostly not connected", k.name)
		}
	}
}

// dial connects, and hangs up when the attack ends.
func (x *attacker) dial(addr string) bool {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: x.from}}
	c, err := d.DialContext(x.ctx, "tcp", addr)
	if err != nil {
		if x.ctx.Err() == nil {
			x.failed.Add(1)
		}
		return false
	}
	x.use(c)
	x.keep = context.AfterFunc(x.ctx, func() { c.Close() })
	return true
}

func (x *attacker) use(c net.Conn) { x.c, x.r = c, bufio.NewReaderSize(c, 1<<10) }

func (x *attacker) hangUp() {
	if x.c != nil {
		x.keep()
		x.c.Close()
		x.c = nil
	}
}

// heard reads a line and returns whether it begins with want.
func (x *attacker) heard(want string) bool {
	x.c.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		line, err := x.r.ReadString('\n')
		if strings.HasPrefix(line, "421") || strings.HasPrefix(line, "-ERR [SYS/TEMP] too many c") {
			x.refused.Add(1)
		}
		if err != nil || !strings.HasPrefix(line, want) {
			return false
		}
		if want[0] == '+' || len(line) < 4 || line[3] != '-' {
			return true
		}
	}
}

func (x *attacker) say(s string) bool {
	x.c.SetWriteDeadline(time.Now().Add(time.Minute))
	n, err := io.WriteString(x.c, s)
	x.octets.Add(int64(n))
	return err == nil
}

// talk says lines and hears what each is answered.
func (x *attacker) talk(dialogue ...string) bool {
	for i, s := range dialogue {
		if i%2 == 0 && !x.heard(s) || i%2 == 1 && !x.say(s+"\r\n") {
			return false
		}
	}
	return true
}

// secure makes a TLS handshake.
func (x *attacker) secure() bool {
	c := tls.Client(x.c, &tls.Config{InsecureSkipVerify: true})
	x.c.SetDeadline(time.Now().Add(30 * time.Second))
	if err := c.HandshakeContext(x.ctx); err != nil {
		return false
	}
	x.use(c)
	return true
}

// hold waits until the site ends the connection.
func (x *attacker) hold() {
	x.c.SetReadDeadline(time.Time{})
	io.Copy(io.Discard, x.r)
}

// pause is false once the attack ends.
func (x *attacker) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-x.ctx.Done():
		return false
	}
}

// pour says piece again and again, so many octets in all, at a pace of so many a second.
func (x *attacker) pour(piece string, octets, second int) bool {
	piece = strings.Repeat(piece, max(1, second/10/len(piece)))
	for start, n := time.Now(), 0; n < octets; n += len(piece) {
		if !x.say(piece) {
			return false
		}
		if ahead := time.Duration(n)*time.Second/time.Duration(second) - time.Since(start); ahead > 0 && !x.pause(ahead) {
			return false
		}
	}
	return true
}

// drip says an octet every few seconds.
func (x *attacker) drip(every time.Duration) {
	for x.pause(every) && x.say("x") {
	}
}
