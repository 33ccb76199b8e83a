//go:build bench && peers

package bench

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	pop3     = flag.Bool("pop3", false, "measure the hand-over by POP3, and nothing else; with -full three times, and needs 15 GiB of disk")
	messages = flag.Int("messages", 0, "how many messages each load of -pop3 hands over (default 2000, with -full 5000)")
)

// pull is one load of a hand-over.
type pull struct{ sessions, depth int }

func (p pull) String() string {
	way := "one command at a time"
	if p.depth > 1 {
		way = fmt.Sprintf("%d commands ahead", p.depth)
	}
	return fmt.Sprintf("%d, %s", p.sessions, way)
}

// handed is what a system's hand-over took.
type handed struct {
	rate   float64 // messages a second, from connecting to the answer to QUIT
	cpu    float64 // ms for each message, of all its processes
	client float64 // the same of the load generator
}

// giver is a system that hands over.
type giver struct {
	name string
	system
	target func() target
	door   func() door
}

const (
	plainName = "Dovecot"
	cryptName = "Dovecot mail_crypt"
	msgwName  = "msgw"
)

func (d *dovecot) door() door {
	return door{addr: d.ip + ":995", tls: d.tls, account: func(box int) (string, string) { return user(box), "any" }}
}

func (a *appliance) door() door {
	return door{addr: a.sites[0].addr + ":995", tls: a.tls, account: func(box int) (string, string) { return a.boxes[box].ID, a.boxes[box].Password }}
}

// TestHandover has the same messages fetched and deleted from msgw and from Dovecot, plain
// and with mail_crypt, by one archive over TLS: UIDL, LIST, then RETR and DELE of each,
// and QUIT. What was fetched is compared with what was sent.
func TestHandover(t *testing.T) {
	if !*pop3 {
		t.Skip("asked for with -pop3")
	}
	n, repetitions := 2000, 1
	if *full {
		n, repetitions = 5000, 3
	}
	if *messages > 0 {
		n = *messages
	}
	const size = 75 << 10
	dir := storage(t, 6*int64(n)*size)
	plain := &dovecot{dir: filepath.Join(dir, "plain"), name: "plain", ip: "127.0.24.3", plain: true, pop3: true}
	crypt := &dovecot{dir: filepath.Join(dir, "crypt"), name: "crypt", ip: "127.0.24.4", pop3: true}
	site := newAppliance(dir, "give", "127.0.34", 1, 0)
	givers := []giver{
		{plainName, plain, func() target { return plain.target }, plain.door},
		{cryptName, crypt, func() target { return crypt.target }, crypt.door},
		{msgwName, site, func() target { return site.target }, site.door},
	}
	only := regexp.MustCompile(*systems)
	givers = slices.DeleteFunc(givers, func(g giver) bool { return !only.MatchString(g.name) })
	for _, g := range givers {
		g.start(t)
	}
	pulls := []pull{{1, 1}, {1, 16}, {8, 1}, {8, 16}}
	pulls = slices.DeleteFunc(pulls, func(p pull) bool { return !regexp.MustCompile(*cells).MatchString(p.String()) })
	results := map[pull]map[string][]handed{}
	for repetition := range repetitions {
		for _, p := range pulls {
			order := slices.Clone(givers)
			if repetition%2 == 1 {
				slices.Reverse(order)
			}
			for _, g := range order {
				if results[p] == nil {
					results[p] = map[string][]handed{}
				}
				results[p][g.name] = append(results[p][g.name], handOver(t, g, p, n, size))
			}
		}
	}
	if !t.Failed() {
		fmt.Println(handoverTable(n, size, pulls, results))
	}
}

// handOver fills as many mailboxes as there are sessions and empties them again.
func handOver(t *testing.T, g giver, p pull, n, size int) handed {
	t.Helper()
	if err := fill(g.target(), n, size, p.sessions); err != nil {
		t.Fatalf("%s: %v", g.name, err)
	}
	unix.Sync()
	found := newFetched(n, size)
	server, client, began := g.group().cpu(t), ownCPU(), time.Now()
	err := each(p.sessions, func(i int) error {
		s, err := g.door().login(i, i)
		if err != nil {
			return err
		}
		return s.drain(p.depth, found)
	})
	took := time.Since(began)
	h := handed{
		rate:   float64(n) / took.Seconds(),
		cpu:    (g.group().cpu(t) - server).Seconds() * 1000 / float64(n),
		client: (ownCPU() - client).Seconds() * 1000 / float64(n),
	}
	if err != nil {
		t.Fatalf("%s: %s: %v", g.name, p, err)
	}
	if got := found.count(); got != n {
		t.Errorf("%s: %s: %d messages were sent, %d fetched", g.name, p, n, got)
	}
	how := ""
	for box := range p.sessions {
		s, err := g.door().login(box, box)
		if err != nil {
			t.Fatal(err)
		}
		if sizes, err := s.octets(); err != nil || len(sizes) > 0 {
			t.Errorf("%s: %d messages are left after QUIT, %v", g.name, len(sizes), err)
		}
		state := s.conn.ConnectionState()
		how = tls.VersionName(state.Version) + ", " + tls.CipherSuiteName(state.CipherSuite)
		s.conn.Close()
	}
	t.Logf("%-20s %-26s %6.0f/s, %.2f ms CPU, %.2f of the archive, %s", g.name, p, h.rate, h.cpu, h.client, how)
	return h
}

// fill sends n messages to so many mailboxes, the same number to each.
func fill(to target, n, size, boxes int) error {
	const senders = 8
	return each(senders, func(i int) error {
		s := &sender{target: to, number: i}
		if err := s.open(false); err != nil {
			return err
		}
		defer s.conn.Close()
		msg := letter(size)
		for k := i; k < n; k += senders {
			s.number = k / senders % boxes
			number(msg, uint64(k))
			if _, err := s.message(msg); err != nil {
				return err
			}
		}
		return s.command("QUIT\r\n", 221)
	})
}

// each runs n of f at a time and returns their errors.
func each(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ownCPU returns the processor time that this process has spent.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // the argument is one that exists
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func handoverTable(n, size int, pulls []pull, results map[pull]map[string][]handed) string {
	median := func(p pull, name string, of func(handed) float64) float64 {
		var all []float64
		for _, h := range results[p][name] {
			all = append(all, of(h))
		}
		if len(all) == 0 {
			return math.NaN()
		}
		slices.Sort(all)
		return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	}
	rate := func(h handed) float64 { return h.rate }
	var b, aims strings.Builder
	fmt.Fprintf(&b, "%d cores. %d messages of %d KB handed over by POP3 over TLS, with UIDL, LIST, RETR, DELE and QUIT.\n\n", runtime.NumCPU(), n, size>>10)
	fmt.Fprintln(&b, "| sessions, way | system | msgs/s | CPU ms/msg | archive's CPU ms/msg | × Dovecot | × mail_crypt |")
	fmt.Fprintln(&b, "|---|---|---:|---:|---:|---:|---:|")
	fmt.Fprintln(&aims, "| aim | at | wanted | reached | |\n|---|---|---:|---:|---|")
	for _, p := range pulls {
		for _, name := range []string{plainName, cryptName, msgwName} {
			if len(results[p][name]) == 0 {
				continue
			}
			m := median(p, name, rate)
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", p, name, digits(m),
				digits(median(p, name, func(h handed) float64 { return h.cpu })), digits(median(p, name, func(h handed) float64 { return h.client })),
				digits(m/median(p, plainName, rate)), digits(m/median(p, cryptName, rate)))
		}
		for _, aim := range []struct {
			name   string
			wanted float64
		}{{plainName, 1}, {cryptName, 3}} {
			reached := median(p, msgwName, rate) / median(p, aim.name, rate)
			verdict := map[bool]string{true: "met", false: "short"}[reached >= aim.wanted]
			if math.IsNaN(reached) {
				verdict = "not measured"
			}
			fmt.Fprintf(&aims, "| msgw ÷ %s | %s | ≥ %s | %s | %s |\n", aim.name, p, digits(aim.wanted), digits(reached), verdict)
		}
	}
	return b.String() + "\n" + aims.String()
}

// resident returns the resident octets of a process, and makes the most it ever had what
// it has now.
func resident(pid int) (int64, error) {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return 0, err
	}
	return highWater(pid)
}
