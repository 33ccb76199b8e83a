//go:build peers

package acme

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/lab"
	"msgw/test/labtest"
	"msgw/test/peers"
)

var timestamp = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)

// finger is a sender that checks a site by DANE all the time.
type finger struct {
	n        lab.NodeRow
	verified int
	other    []string // what it said when the site was not verified
}

// once connects to the site as Postfix does with smtp_tls_security_level = dane, through
// the validating resolver.
func (f *finger) once(ctx context.Context) (verified bool, said string) {
	out, err := postfix.Command(ctx, "/usr/sbin/posttls-finger", "-o", "inet_interfaces=all", "-o", "inet_protocols=ipv4",
		"-c", "-l", "dane", "-d", "sha256", "["+f.n.Host+"]").CombinedOutput()
	said = string(out)
	return err == nil && strings.Contains(said, "Verified TLS connection established to "+f.n.Host+"["), fmt.Sprintf("%s%v", said, err)
}

func (f *finger) run(ctx context.Context) {
	for ctx.Err() == nil {
		// The last one may be cut short.
		switch ok, said := f.once(ctx); {
		case ok:
			f.verified++
		case ctx.Err() == nil:
			f.other = append(f.other, time.Now().Format(time.TimeOnly)+" "+said)
		}
	}
}

// TestRolloverWithDANE renews a site's certificate and changes its key, while Postfix's
// DANE checks both sites all the time, with every signature from the root down validated.
func TestRolloverWithDANE(t *testing.T) {
	postfix.Versions(t)
	w := newWorld(t, setting{signed: "5s"})
	n := w.file.Nodes[0]
	w.must("dns", "set", "--tlsa", "on", "--dir", n.Dir)
	postfix.Write(t, "/etc/postfix/main.cf", "compatibility_level = 3.6\n", 0o644)
	before := w.serves(n, n.Host)
	var fingers []*finger
	for _, site := range w.file.Nodes {
		w.serves(site, site.Host)
		f := &finger{n: site}
		labtest.Within(t, time.Minute, "posttls-finger verifies "+site.Name, func() error {
			if ok, said := f.once(t.Context()); !ok {
				return fmt.Errorf("%s", said)
			}
			return nil
		})
		fingers = append(fingers, f)
	}
	check(w, n.Host, "TLSA at msgw1: 1 keys", "TLSA at msgw2: 1 keys")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	for _, f := range fingers {
		running.Go(func() { f.run(ctx) })
	}
	w.must("cert", "renew", "--dir", n.Dir)
	renewed := w.serves(n, n.Host, before)
	if spki(renewed) != spki(before) {
		t.Error("a renewal changed the key")
	}
	begun := time.Now()
	w.must("cert", "rollover", "--dir", n.Dir)
	next := w.certificates(n).Rollover
	if next == nil {
		t.Fatal("no rollover is listed")
	}
	waits := map[string]bool{}
	labtest.Within(t, 90*time.Second, "the rollover ends", func() error {
		r := w.certificates(n).Rollover
		if r == nil {
			return nil
		}
		waits[timestamp.ReplaceAllString(r.Waiting, "…")] = true
		return fmt.Errorf("waits: %s", r.Waiting)
	})
	after := w.serves(n, n.Host, before, renewed)
	if spki(after) == spki(before) || spki(after) != next.Key {
		t.Errorf("key %s is served, expected %s instead of %s", spki(after), next.Key, spki(before))
	}
	t.Logf("the rollover took %v and waited for %q", time.Since(begun).Round(time.Second), slices.Sorted(maps.Keys(waits)))
	labtest.Within(t, 30*time.Second, "the old key is not announced any more", func() error {
		for _, site := range w.file.Nodes {
			m, err := peers.Ask(site.Addr, "_25._tcp."+n.Host+".", dns.TypeTLSA)
			if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.TLSA).Certificate != next.Key {
				return fmt.Errorf("%s: %v, %w", site.Name, m, err)
			}
		}
		return nil
	})
	time.Sleep(6 * time.Second) // until resolvers have that
	cancel()
	running.Wait()
	for _, f := range fingers {
		t.Logf("posttls-finger verified %s %d times, and did not %d times", f.n.Name, f.verified, len(f.other))
		if len(f.other) > 0 || f.verified < 50 {
			t.Errorf("%s: verified %d times; not: %s", f.n.Name, f.verified, strings.Join(f.other[:min(3, len(f.other))], "\n"))
		}
	}
	check(w, n.Host, "TLSA at msgw1: 1 keys", "TLSA at msgw2: 1 keys")
}
