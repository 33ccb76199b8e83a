//go:build image

package image

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// console is a machine's serial line, with an operator at it.
type console struct {
	conn net.Conn
	done chan struct{}

	mu   sync.Mutex
	text []byte // all that was seen
	read int    // as far as expect has looked
	runs int
}

func openConsole(t *testing.T, path string) *console {
	t.Helper()
	c := &console{done: make(chan struct{})}
	within(t, 10*time.Second, "the console is there", func() (err error) {
		c.conn, err = net.Dial("unix", path)
		return err
	})
	go func() {
		defer close(c.done)
		b := make([]byte, 4096)
		for {
			n, err := c.conn.Read(b)
			c.mu.Lock()
			c.text = append(c.text, b[:n]...)
			c.mu.Unlock()
			if err != nil {
				return // the machine is off
			}
		}
	}()
	return c
}

func (c *console) close() {
	if c == nil {
		return // it never came up
	}
	c.conn.Close()
	<-c.done
}

// all is everything that was on the console, plain.
func (c *console) all() string {
	if c == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return plain(c.text)
}

func (c *console) tail(n int) string {
	s := c.all()
	return s[max(0, len(s)-n):]
}

// escapes are colours and the like.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?]*[a-zA-Z]|[()][A-Z0-9]|[=>78cM])`)

func plain(b []byte) string {
	return strings.ReplaceAll(escapes.ReplaceAllString(string(b), ""), "\r", "")
}

// expect waits for what was not looked at yet to match, and returns it up to there.
func (c *console) expect(t *testing.T, d time.Duration, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		c.mu.Lock()
		seen := c.text[c.read:]
		if at := re.FindIndex(seen); at != nil {
			c.read += at[1]
			c.mu.Unlock()
			return plain(seen[:at[1]])
		}
		c.mu.Unlock()
		if time.Now().After(end) {
			t.Fatalf("not on the console within %v: %s; there is:\n%s", d, pattern, c.tail(2000))
		}
	}
}

func (c *console) typed(t *testing.T, line string) {
	t.Helper()
	c.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c.conn, "%s\n", line); err != nil {
		t.Fatal(err)
	}
}

// login answers a prompt. Without success it has to be refused. A prompt is drawn anew when the machine gets another address, and what was
// typed is lost then: it is tried again.
func (c *console) login(t *testing.T, password string, success bool) {
	t.Helper()
	for try := 0; ; try++ {
		c.prompted(t)
		c.typed(t, "root")
		if !c.seen(15*time.Second, `Password: `) {
			if try == 3 {
				t.Fatalf("no login; there is:\n%s", c.tail(2000))
			}
			continue
		}
		c.expect(t, 30*time.Second, `Password: `)
		c.typed(t, password)
		if !success {
			c.expect(t, 60*time.Second, `Login incorrect`)
			return
		}
		c.expect(t, 60*time.Second, `root@msgw:~# `)
		c.quiet(t)
		return
	}
}

// prompted waits until a prompt is the last thing on the console and stays it: login(1)
// drops what is typed before it asks.
func (c *console) prompted(t *testing.T) {
	t.Helper()
	last, since := 0, time.Now()
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		c.mu.Lock()
		n, asked := len(c.text), strings.HasSuffix(string(c.text), "msgw login: ")
		c.mu.Unlock()
		if n != last {
			last, since = n, time.Now()
		}
		switch still := time.Since(since); {
		case asked && still > 1500*time.Millisecond:
			c.mu.Lock()
			c.read = n
			c.mu.Unlock()
			return
		case still > 10*time.Second: // something else was written behind the prompt
			c.typed(t, "")
			since = time.Now()
		}
	}
	t.Fatalf("nobody asks for a login; there is:\n%s", c.tail(2000))
}

// seen says whether what was not looked at yet matches within d.
func (c *console) seen(d time.Duration, pattern string) bool {
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c.mu.Lock()
		found := re.Match(c.text[c.read:])
		c.mu.Unlock()
		if found {
			return true
		}
	}
	return false
}

// quiet makes the shell say nothing but what commands say.
func (c *console) quiet(t *testing.T) {
	t.Helper()
	c.typed(t, `stty -echo cols 1000; bind 'set enable-bracketed-paste off'; PS1=; export SYSTEMD_PAGER= SYSTEMD_COLORS=0 PAGER=cat; dmesg -n 1; echo rea''dy`)
	c.expect(t, 30*time.Second, `ready\r\n`)
}

// run runs a command in the shell and returns its output and exit code.
func (c *console) run(t *testing.T, d time.Duration, line string) (string, int) {
	t.Helper()
	c.runs++
	end := fmt.Sprintf("end-of-%d:", c.runs)
	c.typed(t, line+"; echo "+end[:3]+"''"+end[3:]+"$?")
	out := c.expect(t, d, end+`[0-9]+\r\n`)
	i := strings.LastIndex(out, end)
	code, err := strconv.Atoi(strings.TrimSpace(out[i+len(end):]))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(out[:i], "\n"), code
}

// must runs a command that has to succeed.
func (c *console) must(t *testing.T, line string) string {
	t.Helper()
	out, code := c.run(t, 90*time.Second, line)
	if code != 0 {
		t.Fatalf("%s: exit code %d\n%s", line, code, out)
	}
	return out
}
