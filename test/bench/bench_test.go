//go:build bench && peers

// Package bench measures msgw beside the programs it stands in for, in one run, on one
// disk, with one load generator: Postfix that delivers to Dovecot with mail_crypt,
// Dovecot with mail_crypt by itself, servers that store nothing, and a program that does
// nothing but append records and flush them in groups.
//
// It promises that every acknowledged message was found where a reader finds it, and
// that each system flushed before it acknowledged: a figure for anything else is an
// error and not printed as a result. Whether an aim is met is printed, not judged: the
// machine decides that as much as the program.
package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msgw/test/peers"
)

var (
	full    = flag.Bool("full", false, "every size, number of senders and way, three times; about an hour and a half")
	systems = flag.String("systems", "", "measure only the systems whose name matches this regular expression")
	cells   = flag.String("cells", "", "measure only the loads whose name, such as \"75 KB, 32, clear\", matches this regular expression")
	window  = flag.Duration("window", 0, "how long each load is measured (default 3s, with -full 4s)")
)

// servers holds the mail servers that msgw is measured beside.
var servers = &peers.Root{Name: "bench", Packages: []string{"postfix", "dovecot-core", "dovecot-lmtpd", "dovecot-pop3d"}}

func TestMain(m *testing.M) {
	if program := os.Getenv(programEnv); program != "" {
		os.Exit(runProgram(program))
	}
	flag.Parse()
	suite := &peers.Suite{Roots: []*peers.Root{servers}}
	if *dnsRates {
		suite = &peers.Suite{Roots: []*peers.Root{nameservers}, Programs: map[string]string{"coredns": corednsModule}}
	}
	suite.Main(m)
}

// programEnv names the program that this binary is run as, instead of as tests.
const programEnv = "MSGW_BENCH_PROGRAM"

// self returns the command that runs one of this binary's programs.
func self(t testing.TB, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), programEnv+"="+program)
	return cmd
}

func runProgram(name string) int {
	programs := map[string]func(args []string) error{"sink": sinkProgram, "disk": diskProgram, "delay": delayProgram}
	if err := programs[name](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		return 1
	}
	return 0
}

// cell is one load.
type cell struct {
	size    int // octets of a message
	senders int
	tls     bool
}

func (c cell) String() string {
	size := fmt.Sprintf("%d KB", c.size>>10)
	if c.size >= 1<<20 {
		size = fmt.Sprintf("%d MB", c.size>>20)
	}
	return fmt.Sprintf("%s, %d, %s", size, c.senders, map[bool]string{false: "clear", true: "STARTTLS"}[c.tls])
}

// The loads of the aims.
var (
	oneSmall = cell{4 << 10, 1, false}
	one      = cell{75 << 10, 1, false}
	many     = cell{75 << 10, 32, false}
)

// plan returns the loads of this run.
func plan() []cell {
	all := []cell{oneSmall, one, many, {75 << 10, 32, true}, {1 << 20, 8, false}}
	if *full {
		all = nil
		for _, tls := range []bool{false, true} {
			for _, size := range []int{4 << 10, 75 << 10, 1 << 20} {
				for _, n := range []int{1, 8, 32, 64} {
					all = append(all, cell{size, n, tls})
				}
			}
		}
	}
	only := regexp.MustCompile(*cells)
	return slices.DeleteFunc(all, func(c cell) bool { return !only.MatchString(c.String()) })
}

// system is what is measured.
type system interface {
	// start brings it up until the test ends.
	start(t *testing.T)
	// load sends what the cell says for a time.
	load(t *testing.T, c cell, warm, measured time.Duration) *load
	// settle waits until n messages lie where a reader finds them.
	settle(t *testing.T, n int)
	// take checks that exactly the n acknowledged messages of a size are there and
	// removes them.
	take(t *testing.T, n, size int)
	// group is where its processes run.
	group() *group
}

// named is a system of the run.
type named struct {
	name string
	system
}

const (
	wireName    = "sink, bare"
	sinkName    = "sink of go-smtp"
	diskName    = "disk, group commits"
	cipherName  = "disk, encrypted"
	postfixName = "Postfix to mail_crypt"
	dovecotName = "Dovecot mail_crypt"
	siteName    = "msgw, one site"
	pairName    = "msgw, two sites"
	distantName = "msgw, two sites 20 ms apart"
)

// roundTrip is the time between the sites of distantName, there and back.
const roundTrip = 20 * time.Millisecond

// start starts what is measured, all of it on the disk at dir.
func start(t *testing.T, dir string) []named {
	t.Helper()
	all := []named{
		{wireName, newSink(true, "127.0.23.1")},
		{sinkName, newSink(false, "127.0.23.2")},
		{diskName, newDisk(dir, false)},
		{cipherName, newDisk(dir, true)},
		{dovecotName, newDovecot(dir, "dovecot", "127.0.24.1")},
		{postfixName, newPostfix(dir, newDovecot(dir, "behind", "127.0.24.2"), "127.0.25.1")},
		{siteName, newAppliance(dir, "one", "127.0.31", 1, 0)},
		{pairName, newAppliance(dir, "two", "127.0.32", 2, 0)},
		{distantName, newAppliance(dir, "far", "127.0.33", 2, roundTrip)},
	}
	only := regexp.MustCompile(*systems)
	all = slices.DeleteFunc(all, func(s named) bool { return !only.MatchString(s.name) })
	for _, s := range all {
		s.start(t)
	}
	return all
}

// storage returns a directory on a disk, until the test ends.
func storage(t *testing.T, need int64) string {
	t.Helper()
	dir := t.TempDir()
	// Mail servers store as users of their own.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		t.Fatalf("%s is memory, where nothing is ever flushed: set TMPDIR to a directory on a disk", dir)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		t.Fatalf("%s has %d MiB free, expected %d", dir, free>>20, need>>20)
	}
	return dir
}

func TestCompare(t *testing.T) {
	dir := storage(t, 20<<30)
	run, repetitions, measured := plan(), 1, 3*time.Second
	if *full {
		repetitions, measured = 3, 4*time.Second
	}
	if *window > 0 {
		measured = *window
	}
	all := start(t, dir)
	if len(run) == 0 || len(all) == 0 {
		t.Fatal("nothing to measure")
	}
	flushes := map[string]bool{}
	for _, s := range all {
		if f, ok := s.system.(flusher); ok {
			flushes[s.name] = f.flushes(t)
		}
	}
	if t.Failed() {
		return
	}
	res := &results{flush: flushTimes(t, dir), idle: idle(t, all), copied: flushes, cells: run}
	for repetition := range repetitions {
		for _, c := range run {
			order := slices.Clone(all)
			if repetition%2 == 1 {
				slices.Reverse(order)
			}
			for _, s := range order {
				if o, ok := measure(t, s, c, measured); ok {
					res.add(s.name, c, o)
				}
			}
		}
	}
	fmt.Println(strings.TrimSpace(res.table()) + "\n\n" + res.aims())
}

// measure puts one load on one system.
func measure(t *testing.T, s named, c cell, measured time.Duration) (outcome, bool) {
	t.Helper()
	if _, ok := s.system.(*disk); ok && c.tls {
		return outcome{}, false // it is not reached over a network
	}
	// What the last one left unwritten is not this one's.
	unix.Sync()
	g := s.group()
	before, stop := g.cpu(t), g.watch()
	began := time.Now()
	l := s.load(t, c, time.Second, measured)
	s.settle(t, l.acknowledged)
	settled := time.Since(began)
	peak, cpu := stop(), g.cpu(t)-before
	s.take(t, l.acknowledged, c.size)
	if len(l.faults) > 0 {
		t.Errorf("%s, %s: %d faults, the first: %v", s.name, c, len(l.faults), l.faults[0])
	}
	if l.acknowledged == 0 || l.inWindow == 0 {
		t.Errorf("%s, %s: no message was acknowledged", s.name, c)
		return outcome{}, false
	}
	o := outcome{
		rate:   float64(l.inWindow) / measured.Seconds(),
		stored: float64(l.acknowledged) / settled.Seconds(),
		p50:    quantile(l.waits, 0.5),
		p99:    quantile(l.waits, 0.99),
		cpu:    cpu.Seconds() * 1000 / float64(l.acknowledged),
		rss:    float64(peak) / (1 << 20),
		flush:  l.flush,
	}
	t.Logf("%-28s %-20s %8.0f/s, p99 %.1f ms, %.2f ms CPU, %d acknowledged and found", s.name, c, o.rate, o.p99, o.cpu, l.acknowledged)
	return o, true
}

// idle returns the share of a core that all systems together take while none is
// loaded: what each of them loses to the others.
func idle(t *testing.T, all []named) float64 {
	t.Helper()
	sum := func() (d time.Duration) {
		for _, s := range all {
			d += s.group().cpu(t)
		}
		return d
	}
	before := sum()
	time.Sleep(3 * time.Second)
	return (sum() - before).Seconds() / 3
}
