//go:build hostile

// Package hostile attacks a site from many addresses at once, in every way that needs no
// more than connections, while a well-behaved sender sends and a well-behaved archive
// fetches. All of it is on loopback and needs no root.
//
// What is held against the site:
//
//   - The sender has a fixed number of sessions and a fixed pace, which the machine can
//     hold with ease. Messages acknowledged per second are counted, before the attack and
//     during it: the rate may not fall by more than a fifth, nor to less than half in any
//     ten seconds. A message that comes late is not made up for by a faster next one. Half
//     of the sessions end after every few messages, so that the sender must get in anew
//     while strangers take all places that there are.
//   - The archive logs in every two seconds. It too must get in, each time.
//   - Every message that got a 250 is fetched, once, octet for octet, and nothing else is.
//   - The process stays below a bound of memory, and afterwards has let go of everybody.
//
// The attackers are paced: what is measured is whether they get in the way by what they
// hold, not how the kernel divides two processors.
package hostile

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/test/labtest"
)

var (
	lasts  = flag.Duration("hostile.for", time.Minute, "how long the attack lasts")
	before = flag.Duration("hostile.before", 15*time.Second, "how long the rate is measured before it")
	only   = flag.String("hostile.only", "", "regular expression of the kinds of attack, to look at them alone")
)

// mostMemory bounds the resident memory of the attacked process, at its peak. A thousand
// SMTP connections with TLS take about 100 KiB each.
const mostMemory = 400 << 20

var program string // the built msgw

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "msgw-hostile-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if program, err = labtest.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// site is the one that is attacked.
type site struct {
	lab.NodeRow
	t *testing.T
}

var gauge = regexp.MustCompile(`(?m)^(msgw_smtp_connections|msgw_pop3_sessions) (\S+)$`)

// connections returns how many there are at its doors.
func (s site) connections() (smtp, pop3 int) {
	res, err := http.Get("http://" + s.Metrics + "/metrics")
	if err != nil {
		s.t.Errorf("metrics: %v", err)
		return 0, 0
	}
	defer res.Body.Close()
	b := make([]byte, 0, 256<<10)
	for buf := make([]byte, 32<<10); ; {
		n, err := res.Body.Read(buf)
		if b = append(b, buf[:n]...); err != nil {
			break
		}
	}
	for _, m := range gauge.FindAllSubmatch(b, -1) {
		v, _ := strconv.ParseFloat(string(m[2]), 64)
		if string(m[1]) == "msgw_smtp_connections" {
			smtp = int(v)
		} else {
			pop3 = int(v)
		}
	}
	return smtp, pop3
}

var memory = regexp.MustCompile(`(?m)^(VmHWM|VmRSS):\s+(\d+) kB$`)

// memory returns the octets resident now and at the peak.
func (s site) memory() (now, peak int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	if err != nil {
		s.t.Errorf("the site has ended: %v", err)
	}
	for _, m := range memory.FindAllSubmatch(b, -1) {
		v, _ := strconv.ParseInt(string(m[2]), 10, 64)
		if string(m[1]) == "VmRSS" {
			now = v << 10
		} else {
			peak = v << 10
		}
	}
	return now, peak
}

// log counts what the site says of connections that it did not want, in its log.
func (s site) log(path string) {
	f, err := os.Open(path)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer f.Close()
	says := []string{"connections in total", "connections from one address", "connections from one network", "place given to another", "made room for another",
		"TLS handshake failed", "not SMTP", "too many errors", "connection timed out", "tls failed", "result=credentials", "result=throttled"}
	times, octets := make([]int, len(says)), 0
	for lines := bufio.NewScanner(f); lines.Scan(); octets += len(lines.Bytes()) + 1 {
		for i := range says {
			if bytes.Contains(lines.Bytes(), []byte(says[i])) {
				times[i]++
			}
		}
	}
	for i := range says {
		s.t.Logf("%8d times in its log: %s", times[i], says[i])
	}
	s.t.Logf("%8d KiB of log", octets>>10)
}

// used returns how long processors worked for the site, and for this program.
func (s site) used() (theirs, ours time.Duration) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
	if err != nil {
		s.t.Errorf("the site has ended: %v", err)
		return 0, 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest) // of proc_pid_stat(5), from the third on
	for _, ticks := range f[11:13] {
		n, _ := strconv.ParseInt(ticks, 10, 64)
		theirs += time.Duration(n) * 10 * time.Millisecond
	}
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return theirs, time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestHour(t *testing.T) {
	l := labtest.Start(t, program, filepath.Join(t.TempDir(), "lab"), "--net", fmt.Sprintf("127.%d.%d", 64+rand.IntN(64), rand.IntN(256)), "--mailboxes", "3")
	f := l.File()
	s := site{f.Nodes[0], t}
	quiet, _ := s.memory()

	g := newGood(t, f, f.Mailboxes[0])
	g.begin()
	time.Sleep(5 * time.Second) // connections are made, and the archive is known
	theirs, ours := s.used()
	was := g.measure(*before)
	theirs1, ours1 := s.used()
	a := newAttack(t, s, f.Mailboxes[1], f.Mailboxes[2])
	a.begin()
	theirs2, ours2 := s.used()
	var most peaks
	var watch sync.WaitGroup
	watch.Go(func() { most = a.watch(*lasts) })
	during := g.measure(*lasts)
	watch.Wait()
	theirs3, ours3 := s.used()
	g.end()
	a.end()
	smtp, pop3 := most.smtp, most.pop3
	_, peak := s.memory()

	a.report()
	s.log(filepath.Join(l.Dir, s.Name+".log"))
	t.Logf("hostile: before, %.1f messages a second, %s", was.rate(), was.delays())
	t.Logf("hostile: during, %.1f messages a second, %.1f in the worst ten seconds, %s", during.rate(), during.worst(), during.delays())
	share := func(d, of time.Duration) float64 { return 100 * d.Seconds() / of.Seconds() }
	t.Logf("processor: before, %.0f %% of one for the site and %.0f %% for this program; during, %.0f %% and %.0f %%",
		share(theirs1-theirs, *before), share(ours1-ours, *before), share(theirs3-theirs2, *lasts), share(ours3-ours2, *lasts))
	t.Logf("the sender was refused or cut off %d times, the archive came %d times and failed %d", g.failures(), g.polls.Load(), g.failed.Load())
	t.Logf("hostile: at the peak, %d SMTP and %d POP3 connections, and %d MiB; %d MiB before", smtp, pop3, peak>>20, quiet>>20)
	if during.rate() < 0.8*was.rate() || during.worst() < 0.5*was.rate() {
		t.Errorf("the well-behaved sender had %.1f messages a second, then %.1f, and %.1f in the worst ten seconds", was.rate(), during.rate(), during.worst())
	}
	if g.failed.Load() > 0 {
		t.Errorf("the archive did not get in %d times of %d, at last: %v", g.failed.Load(), g.polls.Load(), g.lastFailure.Load())
	}
	if peak > mostMemory {
		t.Errorf("memory: %d MiB", peak>>20)
	}
	// Else the attack was none.
	if *only == "" && (smtp < 900 || pop3 < 900) {
		t.Errorf("all places were to be taken, there were %d SMTP and %d POP3 connections", smtp, pop3)
	}
	g.compare()
	labtest.Within(t, 30*time.Second, "nobody is connected any more", func() error {
		if smtp, pop3 := s.connections(); smtp > 4 || pop3 > 0 { // the other site probes
			return fmt.Errorf("%d SMTP and %d POP3 connections", smtp, pop3)
		}
		return nil
	})
	now, _ := s.memory()
	t.Logf("memory afterwards: %d MiB", now>>20)
	if n := l.File().Nodes[0]; n.PID != s.PID {
		t.Errorf("the site ended, it was process %d and is %d", s.PID, n.PID)
	}
}
