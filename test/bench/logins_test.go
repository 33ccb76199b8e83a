//go:build bench && peers

package bench

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/seal"
)

const (
	pollEvery   = 300 * time.Second // how often an archive looks into each mailbox
	wantedBoxes = 10_000            // at one site, at that interval
)

// TestLogins measures how often archives can look into mailboxes that are empty: connect,
// TLS handshake, login, STAT and QUIT, over and over. A password that msgw made costs less
// to check than one that a person made up.
func TestLogins(t *testing.T) {
	if !*pop3 {
		t.Skip("asked for with -pop3")
	}
	measured := 3 * time.Second
	if *full {
		measured = 10 * time.Second
	}
	a := newAppliance(storage(t, 1<<30), "logins", "127.0.35", 1, 0)
	a.start(t)
	generated := a.door()
	chosen := generated
	var boxes []admin.Credentials
	const password = "correct horse battery staple"
	for range mailboxes {
		c, err := a.sites[0].admin().CreateMailbox(t.Context(), admin.CreateMailbox{Password: password})
		if err != nil {
			t.Fatal(err)
		}
		boxes = append(boxes, c)
	}
	chosen.account = func(box int) (string, string) { return boxes[box].ID, password }

	var b strings.Builder
	fmt.Fprintln(&b, "| passwords | at a time | logins/s | CPU ms/login | mailboxes at 300 s |\n|---|---:|---:|---:|---:|")
	best := 0.0
	for _, kind := range []struct {
		name string
		kdf  seal.KDF
		door door
	}{{"generated", seal.GeneratedKDF, generated}, {"chosen", seal.ChosenKDF, chosen}} {
		for _, n := range []int{1, 8, 32} {
			var logins atomic.Int64
			cpu, began := a.g.cpu(t), time.Now()
			err := each(n, func(i int) error {
				for k := i; time.Since(began) < measured; k += n {
					if err := kind.door.poll(k, k%mailboxes); err != nil {
						return err
					}
					logins.Add(1)
				}
				return nil
			})
			if err != nil {
				t.Fatalf("%s, %d at a time: %v", kind.name, n, err)
			}
			took := time.Since(began)
			rate := float64(logins.Load()) / took.Seconds()
			if kind.name == "generated" {
				best = max(best, rate)
			}
			fmt.Fprintf(&b, "| %s (t=%d, %d MiB) | %d | %s | %s | %.0f |\n", kind.name, kind.kdf.Time, kind.kdf.Memory>>10, n, digits(rate),
				digits((a.g.cpu(t)-cpu).Seconds()*1000/float64(logins.Load())), rate*pollEvery.Seconds())
		}
	}
	verdict := map[bool]string{true: "met", false: "short"}[best*pollEvery.Seconds() >= wantedBoxes]
	fmt.Printf("%s\n| aim | wanted | reached | |\n|---|---:|---:|---|\n| mailboxes with generated passwords that one site carries at 300 s | ≥ %d | %.0f | %s |\n\n",
		&b, wantedBoxes, best*pollEvery.Seconds(), verdict)
}

// poll looks into a mailbox once.
func (d door) poll(peer, box int) error {
	s, err := d.login(peer, box)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	if said, err := s.command("STAT"); err != nil || said != "+OK 0 0" {
		return fmt.Errorf("STAT: %s %w", said, err)
	}
	_, err = s.command("QUIT")
	return err
}
