//go:build faults

package faults

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/test/labtest"
)

// until waits until a node's status is as it should be.
func (a *appliance) until(m *machine, what string, ok func(admin.Status) bool) {
	a.t.Helper()
	labtest.Within(a.t, 60*time.Second, m.name+": "+what, func() error {
		s, err := m.status()
		if err == nil && !ok(s) {
			err = fmt.Errorf("quorum %v, voters %v, epoch %d-%s, trouble %q", s.Quorum, s.Voters, s.Epoch, s.EpochID, s.Trouble)
		}
		return err
	})
}

func noQuorum(s admin.Status) bool { return !s.Quorum }

// refuses runs a command that must fail with words.
func (m *machine) refuses(words string, args ...string) {
	m.t.Helper()
	out, err := m.msgw(append(args, "--dir", m.dir)...)
	if err == nil || !strings.Contains(err.Error(), words) {
		m.t.Errorf("%s: msgw %s: %v\n%s", m.name, strings.Join(args, " "), err, out)
	}
}

func (m *machine) operator(args ...string) string {
	m.t.Helper()
	return strings.TrimSpace(m.must(append(args, "--dir", m.dir)...))
}

// cutPeer drops what another machine sends to this one's peer port; the public ports
// stay open.
func (m *machine) cutPeer(from *machine) {
	m.t.Helper()
	m.rules("table inet faults {\n chain in {\n  type filter hook input priority 0;\n  ip saddr " + from.addr + " tcp dport 8451 drop\n  ip saddr " + from.addr + " tcp sport 8451 drop\n }\n}\n")
}

// together waits until all nodes that live are of one epoch and both sites in SYNC.
func (a *appliance) together(epoch uint64, voters ...string) {
	a.t.Helper()
	for _, m := range a.sites {
		a.until(m, "votes with the others in SYNC", func(s admin.Status) bool {
			v := slices.Sorted(slices.Values(s.Voters))
			return s.Quorum && s.Epoch == epoch && slices.Equal(v, voters) && s.Copies.State == "SYNC"
		})
	}
}

// TestYield cuts the line between two sites that live, under load. One yields, the other
// goes on; the line is mended.
func TestYield(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times})
	one, two := a.sites[0], a.sites[1]
	a.flow(40, 40)
	a.witness.kill()
	one.cutPeer(two)
	two.cutPeer(one)
	for _, m := range a.sites {
		a.until(m, "no quorum", noQuorum)
	}
	// It can be seen to live: its public ports answer.
	one.refuses("msgw2 lives", "recover", "msgw2", "witness")
	two.refuses("msgw1 lives", "recover", "msgw1", "witness")
	a.flow(40, 40)
	token := two.operator("yield")
	two.refuses("no quorum", "node", "weight", "msgw1", "3")
	one.refuses("witness is not named", "recover", "--yield", token)
	if out := one.operator("recover", "witness", "--yield", token); !strings.Contains(out, "goes on alone in epoch 2-") {
		t.Error(out)
	}
	one.operator("node", "weight", "msgw1", "3")
	a.flow(40, 40)
	a.repair(0, 1)
	a.together(2, "msgw1", "msgw2", "witness")
	two.operator("node", "weight", "msgw1", "1")
	a.finish()
}

// TestFork lets both sites go on alone, under load, and one of them give way.
func TestFork(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times})
	one, two := a.sites[0], a.sites[1]
	a.flow(40, 40)
	a.witness.kill()
	a.cut(drop, 0, 1)
	for i, m := range a.sites {
		a.until(m, "no quorum", noQuorum)
		a.until(m, "does not reach the other one", func(s admin.Status) bool {
			return slices.ContainsFunc(s.Peers, func(p admin.Peer) bool { return p.Name == a.sites[1-i].name && !p.Reachable })
		})
	}
	one.operator("recover", "msgw2", "witness")
	two.operator("recover", "msgw1", "witness")
	for i, m := range a.sites { // each changes something
		m.operator("node", "weight", m.name, fmt.Sprint(2+i))
	}
	a.flow(60, 60)
	one.heal()
	two.heal()
	for _, m := range a.sites {
		a.until(m, "sees the fork", func(s admin.Status) bool {
			return slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.HasPrefix(x, "fork: ") })
		})
	}
	a.flow(40, 40)
	if out := two.operator("rejoin", "msgw1"); !strings.Contains(out, "`msgw node weight msgw2 3`") {
		t.Error(out)
	}
	a.together(2, "msgw1", "msgw2")
	a.witness.start() // it finds the lineage that there is
	a.together(2, "msgw1", "msgw2", "witness")
	a.finish()
}

// TestReplaced loses a site with its disk, under load, and puts a new machine in its
// place.
func TestReplaced(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times})
	one, two := a.sites[0], a.sites[1]
	a.flow(40, 40)
	a.archive[1].pause() // mail waits at the site that is lost
	a.flow(60, 0)
	two.kill()
	if err := os.RemoveAll(two.dir); err != nil {
		t.Fatal(err)
	}
	a.until(one, "goes on with the witness", func(s admin.Status) bool { return s.Quorum })
	a.flow(40, 0)
	var token string
	labtest.Within(t, 30*time.Second, "a token", func() error {
		out, err := one.msgw("invite", "--replace", "msgw2", "--dir", one.dir)
		token = strings.TrimSpace(out)
		if token == "" {
			return errors.Join(err, errors.New("none"))
		}
		return err
	})
	two.must("join", token, "--config", two.config)
	two.start()
	a.archive[1].open()
	a.together(1, "msgw1", "msgw2", "witness")
	// It is killed at once and comes back as any other.
	two.end(syscall.SIGKILL)
	a.flow(20, 0)
	two.start()
	a.together(1, "msgw1", "msgw2", "witness")
	a.finish()
}

// TestRemoved takes a site out, under load, with mail waiting there.
func TestRemoved(t *testing.T) {
	t.Parallel()
	a := newAppliance(t, plan{times: times})
	one, two := a.sites[0], a.sites[1]
	a.flow(40, 40)
	a.archive[1].pause()
	a.flow(60, 0)
	if out := one.operator("node", "remove", "msgw2", "--adopt"); !strings.Contains(out, "are handed over here") {
		t.Error(out)
	}
	a.until(two, "knows", func(s admin.Status) bool { return !s.Accepting && strings.Contains(s.Reason, "no member") })
	a.until(one, "is the only site", func(s admin.Status) bool { return s.Quorum && s.Copies.State == "ALONE" && len(s.MX) == 1 })
	a.flow(40, 0)
	a.load.pause()
	a.load.end()
	two.kill()
	a.empty(0)
}
