//go:build bench && peers

package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

const (
	backlog    = 100_000 // messages in one mailbox
	listWithin = time.Second
)

// TestBacklog lets many messages wait in one mailbox, as after days without an archive,
// and measures the time from connecting to the end of LIST and UIDL, what a session that
// listed them needs, and how long QUIT takes that deletes them all.
func TestBacklog(t *testing.T) {
	if !*pop3 {
		t.Skip("asked for with -pop3")
	}
	size := 4 << 10
	if *full {
		size = 75 << 10
	}
	a := newAppliance(storage(t, backlog*int64(size+4<<10)+2<<30), "backlog", "127.0.36", 1, 0)
	a.start(t)
	began := time.Now()
	if err := fill(a.target, backlog, size, 1); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d messages of %d KB sent in %.0f s", backlog, size>>10, time.Since(began).Seconds())
	pid := a.sites[0].pid
	var times, logins []time.Duration
	var before, after int64
	for i := range 5 {
		// The first session meets the memory of those who sent; the next ones show what
		// a session takes.
		now, err := resident(pid)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		s, err := a.door().login(i, 0)
		if err != nil {
			t.Fatal(err)
		}
		logins = append(logins, time.Since(began))
		sizes, err := s.octets()
		if err != nil || len(sizes) != backlog {
			t.Fatalf("%d messages listed, %v", len(sizes), err)
		}
		times = append(times, time.Since(began))
		peak, err := highWater(pid)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			before = now
		}
		after = max(after, peak)
		if _, err := s.command("QUIT"); err != nil {
			t.Fatal(err)
		}
		s.conn.Close()
	}
	took := a.deleteAll(t)
	slices.Sort(times)
	slices.Sort(logins)
	median := times[len(times)/2]
	fmt.Printf("%d messages of %d KB in one mailbox: login %.2f s, with LIST and UIDL %.2f s (%.2f–%.2f); the node had %d MiB resident before and at most %d MiB with it, %.0f octets a message; QUIT that deletes them all %.2f s\n\n",
		backlog, size>>10, logins[len(logins)/2].Seconds(), median.Seconds(), times[0].Seconds(), times[len(times)-1].Seconds(),
		before>>20, after>>20, float64(after-before)/backlog, took.Seconds())
	verdict := map[bool]string{true: "met", false: "short"}[median <= listWithin]
	fmt.Printf("| aim | wanted | reached | |\n|---|---:|---:|---|\n| login to the end of LIST and UIDL, %d messages | ≤ %.1f s | %.2f s | %s |\n\n", backlog, listWithin.Seconds(), median.Seconds(), verdict)
}

// deleteAll deletes every message and returns how long QUIT took.
func (a *appliance) deleteAll(t *testing.T) time.Duration {
	t.Helper()
	s, err := a.door().login(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.conn.Close()
	for i := range backlog {
		if _, err := s.command(fmt.Sprintf("DELE %d", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if _, err := s.command("QUIT"); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if err := a.door().poll(0, 0); err != nil {
		t.Errorf("after all were deleted: %v", err)
	}
	return took
}
