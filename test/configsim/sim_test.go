// Package configsim plays histories of a cluster's replicated configuration in virtual
// time: real stores on real directories, over a network that is cut and machines that
// crash. Clients change the configuration everywhere, and one order of all changes must
// explain every answer that they got.
package configsim

import (
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
)

var (
	seeds   = flag.Int("configsim.seeds", 20, "how many histories TestHistories plays at the most")
	enough  = flag.Duration("configsim.enough", 0, "begin no other history after this time; 0: play them all")
	first   = flag.Uint64("configsim.seed", 0, "play the history of this seed only")
	verbose = flag.Bool("configsim.log", false, "log what the nodes log")
)

// tally counts over all histories.
var tally struct {
	mu        sync.Mutex
	histories int
	counts    map[string]int
}

// TestHistories plays histories of random seeds. A seed settles what is done and when, not
// how raft's own dice fall: a history that failed may have to be repeated to fail again.
func TestHistories(t *testing.T) {
	from, n, start := rand.Uint64N(1<<40), *seeds, time.Now()
	if *first != 0 {
		from, n = *first, 1
	}
	tally.counts = map[string]int{}
	t.Run("seeds", func(t *testing.T) {
		for i := range n {
			seed := from + uint64(i)
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				if *enough > 0 && time.Since(start) > *enough {
					return
				}
				var d *director
				synctest.Test(t, func(t *testing.T) { d = play(t, seed) })
				judge(t, d)
			})
		}
	})
	tally.mu.Lock()
	defer tally.mu.Unlock()
	var counts []string
	for _, what := range slices.Sorted(maps.Keys(tally.counts)) {
		counts = append(counts, fmt.Sprintf("%s %d", what, tally.counts[what]))
	}
	t.Logf("%d histories from seed %d: %s", tally.histories, from, strings.Join(counts, ", "))
	if n >= 20 && tally.counts["made"] < 10*max(20, tally.histories) {
		t.Errorf("only %d changes were made: the histories prove nothing", tally.counts["made"])
	}
}

// play plays one history.
func play(t *testing.T, seed uint64) *director {
	log := slog.New(slog.DiscardHandler)
	if *verbose {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	d := &director{world: newWorld(t, seed, log), rng: rand.New(rand.NewPCG(seed, 1))}
	d.begin()
	var clients sync.WaitGroup
	for i := range 3 {
		clients.Go(d.newClient(i).run)
	}
	for range 3 + d.rng.IntN(5) {
		d.step()
		d.nap(4 * tick)
	}
	d.mend()
	close(d.stop)
	clients.Wait()
	d.settle()
	for _, m := range d.all() {
		m.stop()
	}
	d.wg.Wait()
	return d
}

// judge looks for an order of all changes that explains every answer.
func judge(t *testing.T, d *director) {
	result := porcupine.CheckOperationsTimeout(model(d.history.start), d.history.ops, time.Minute)
	if result == porcupine.Illegal {
		d.fail("no order of the changes explains the answers%s", explain(d.history))
	}
	for v := range d.history.refused {
		if d.history.known[v] {
			d.fail("the change to %s was said not to be made, and is", v)
		}
	}
	if len(d.failures) > 0 {
		t.Errorf("%s\nthe story:\n\t%s\nrepeat it: go test ./test/configsim -run TestHistories -configsim.seed %d",
			strings.Join(d.failures, "\n"), strings.Join(d.story, "\n\t"), d.seed)
	}
	tally.mu.Lock()
	defer tally.mu.Unlock()
	tally.histories++
	for what, n := range d.counts {
		tally.counts[what] += n
	}
	if result == porcupine.Unknown {
		tally.counts["not decided"]++
		t.Logf("not decided within a minute: -configsim.seed %d", d.seed)
	}
}

// explain lists the answers about the keys that no order explains.
func explain(h history) string {
	var b strings.Builder
	m := model(h.start)
	for _, part := range m.Partition(h.ops) {
		if ok := porcupine.CheckOperationsTimeout(model(h.start), part[1:], time.Minute); ok != porcupine.Illegal {
			continue
		}
		slices.SortStableFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		for _, o := range part {
			ret := "-"
			if o.Return != forever {
				ret = time.Unix(0, o.Return).UTC().Format("15:04:05.000000")
			}
			fmt.Fprintf(&b, "\n\t%s %s %s", time.Unix(0, o.Call).UTC().Format("15:04:05.000000"), ret, m.DescribeOperation(o.Input, o.Output))
		}
	}
	return b.String()
}
