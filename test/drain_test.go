package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/lab/report"
	"msgw/test/labtest"
)

// preferences asks a site's DNS for the MX set, as "msgw1=10 msgw2=100".
func (p *pair) preferences(site int) (string, error) {
	r, err := dns.Exchange(new(dns.Msg).SetQuestion(zone+".", dns.TypeMX), p.nodes[site].DNS)
	if err != nil {
		return "", err
	}
	var parts []string
	for _, rr := range r.Answer {
		if mx, ok := rr.(*dns.MX); ok {
			parts = append(parts, fmt.Sprintf("%s=%d", strings.TrimSuffix(mx.Mx, "."+zone+"."), mx.Preference))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, " "), nil
}

func (p *pair) answers(site int, want string) {
	p.t.Helper()
	labtest.Within(p.t, 30*time.Second, p.nodes[site].Name+" answers "+want, func() error {
		got, err := p.preferences(site)
		if err == nil && got != want {
			err = errors.New(got)
		}
		return err
	})
}

// TestDrain drains sites of a pair: the drained one is answered last and takes mail, the
// drain survives a restart, needs no quorum, and a survivor is answered as always.
func TestDrain(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for site := range 2 {
		p.becomes(site, "SYNC")
		p.answers(site, "msgw1=10 msgw2=10")
	}
	for _, bad := range [][]string{{"drain", "msgw1", "--for", "5s"}, {"drain", "msgw1", "--for", "721h"}, {"drain", "msgw1", "--for", "0s"}, {"drain", "nobody"}} {
		p.msgw(1, 2, append([]string{"node"}, bad...)...)
	}

	// A drain with an end, asked for at the other site.
	p.lab("stop", "msgw1")
	if out := p.msgw(1, 1, "node", "drain", "msgw1"); !strings.Contains(out, "a drain belongs to the node itself") {
		t.Errorf("drain of a node that does not run: %s", out)
	}
	p.lab("start", "msgw1")
	p.becomes(0, "SYNC")
	began := time.Now()
	out := p.msgw(1, 0, "node", "drain", "msgw1", "--for", "30m")
	if !strings.Contains(out, "msgw1 is drained until 2") || !strings.Contains(out, "switch off: not yet: senders may still come for 120 s\n") {
		t.Errorf("drain: %s", out)
	}
	for site := range 2 {
		p.answers(site, "msgw1=100 msgw2=10")
	}
	own, seen := p.status(0).Drain, p.status(1).Peers[0].Drain
	if own == nil || seen == nil || !own.Until.Equal(seen.Until) || own.Until.Before(began.Add(30*time.Minute)) || own.Until.After(time.Now().Add(30*time.Minute)) || own.Safe {
		t.Errorf("drained: by its own word %+v, by the other's %+v", own, seen)
	}
	if out := p.msgw(1, 0, "status"); !strings.Contains(out, "msgw1 is drained until 2") || !strings.Contains(out, "it is drained until 2") {
		t.Errorf("status of msgw2:\n%s", out)
	}
	p.mustGive(0, report.New(2, 1, 2000))

	// Without a quorum, and alone: mail and the answers go on as ever.
	p.lab("kill", "msgw2")
	p.answers(0, "msgw1=10 msgw2=100")
	p.becomes(0, "DEGRADED")
	p.mustGive(0, report.New(2, 2, 2000))
	if out := p.msgw(0, 1, "status"); !strings.Contains(out, "the other site does not answer; 1 message has one copy only") {
		t.Errorf("status of a drained survivor:\n%s", out)
	}
	if out := p.msgw(0, 0, "node", "undrain", "msgw1"); out != "msgw1 is no longer drained\n" || p.status(0).Drained {
		t.Errorf("undrain: %s", out)
	}
	p.msgw(0, 0, "node", "drain", "msgw1")

	// Killed and started again without the other site, it is still drained, and answered.
	p.lab("kill", "msgw1")
	p.lab("start", "msgw1")
	labtest.Within(t, 20*time.Second, "msgw1 answers", func() error {
		_, err := p.Msgw("node", "list", "--dir", p.nodes[0].Dir)
		return err
	})
	if s := p.status(0); !s.Drained || s.Drain == nil || !s.Drain.Until.IsZero() {
		t.Errorf("after a restart: %v, %+v", s.Drained, s.Drain)
	}
	p.answers(0, "msgw1=10 msgw2=100")

	// Both sites drained are answered as if none were.
	p.lab("start", "msgw2")
	p.becomes(0, "SYNC")
	p.answers(1, "msgw1=100 msgw2=10")
	p.msgw(1, 0, "node", "drain", "msgw2")
	for site := range 2 {
		p.answers(site, "msgw1=10 msgw2=10")
	}
	p.msgw(0, 0, "node", "undrain", "msgw2")

	// Senders have had their time: then it is safe as soon as everything has two copies.
	// A file of before an end could be given counts from the start of the node.
	file := filepath.Join(p.nodes[0].Dir, "drain.json")
	p.rewrite("true", file)
	if d := p.status(0).Drain; d == nil || d.Safe || time.Since(d.Since) > time.Minute {
		t.Errorf("of a file of before: %+v", d)
	}
	p.rewrite(`{"drained":true,"since":"2026-01-01T00:00:00Z"}`, file)
	if out := p.msgw(0, 0, "node", "drain", "msgw1", "--wait"); !strings.HasSuffix(out, "switch off: safe now: every message there is at the other site as well, and senders have been asked away\n") {
		t.Errorf("drain --wait: %s", out)
	}
	if d := p.status(1).Peers[0].Drain; d == nil || !d.Safe {
		t.Errorf("msgw2 sees %+v", d)
	}
	// Its time was over while it was off.
	p.rewrite(`{"drained":true,"since":"2026-01-01T00:00:00Z","until":"2026-01-02T00:00:00Z"}`, file)
	if s := p.status(0); s.Drained || s.Drain != nil {
		t.Errorf("after its end: %v, %+v", s.Drained, s.Drain)
	}
	for site := range 2 {
		p.answers(site, "msgw1=10 msgw2=10")
	}
	got, err := p.fetch(0, -1)
	if err != nil || len(got) != 2 {
		t.Errorf("fetched %v, %v", ids(got), err)
	}
}

// rewrite puts another text into a file of msgw1 while it is stopped.
func (p *pair) rewrite(text, file string) {
	p.t.Helper()
	p.lab("stop", "msgw1")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.lab("start", "msgw1")
	p.becomes(0, "SYNC")
}
