//go:build peers

package resolvers

import (
	"regexp"
	"sync"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/node"
	"msgw/test/labtest"
	"msgw/test/peers"
)

// TestNoAnswerIsLost has dnsperf ask both sites while the configuration changes a hundred
// times, and then through a resolver while each site in turn restarts.
func TestNoAnswerIsLost(t *testing.T) {
	l := peers.Lab(t)
	f := l.File()
	peers.ServeTree(t, base, f)
	peers.Unbound(t, base, 0)
	base.Write(t, "/srv/queries", f.Zone+" MX\n"+f.Zone+" SOA\n"+f.Nodes[0].Host+" A\n"+f.Zone+" NS\n", 0o644)

	var wg sync.WaitGroup
	ask := func(server, seconds, rate string) {
		wg.Go(func() {
			out := base.Output(t, "/usr/bin/dnsperf", "-s", server, "-d", "/srv/queries", "-l", seconds, "-Q", rate, "-t", "8")
			if !regexp.MustCompile(`Queries lost:\s+0 `).MatchString(out) || !regexp.MustCompile(`NOERROR \d+ \(100\.00%\)`).MatchString(out) {
				t.Errorf("%s:\n%s", server, out)
			}
			t.Logf("%s: %s", server, regexp.MustCompile(`Queries completed:\s+\d+`).FindString(out))
		})
	}
	for _, n := range f.Nodes {
		ask(n.Addr, "25", "1000")
	}
	cl := admin.NewClient(f.Nodes[0].Dir, node.SocketFile)
	began := time.Now()
	for i := range 100 {
		if _, err := cl.SetWeight(t.Context(), f.Nodes[i%2].Name, uint32(1+i%7)); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 24*time.Second {
		t.Errorf("100 changes took %v, longer than dnsperf asked", took)
	}
	wg.Wait()

	ask(peers.ResolverAddr, "30", "200")
	for _, n := range f.Nodes {
		for _, verb := range []string{"stop", "start"} {
			if out, err := l.Msgw("lab", verb, n.Name, "--dir", l.Dir); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		labtest.Within(t, 20*time.Second, n.Name+" answers again", func() error {
			_, err := peers.Ask(n.Addr, f.Zone+".", 15)
			return err
		})
		time.Sleep(time.Second)
	}
	wg.Wait()
}
