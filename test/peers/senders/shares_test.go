//go:build peers

package senders

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"msgw/internal/admin"
	"msgw/internal/node"
	"msgw/test/peers"
)

// choices is how often each program is asked which host it takes first. The weights are
// told apart by it: 75 % of it from 50 % by 5 standard deviations.
const choices = 120

// TestShares lets Postfix and exim choose among the hosts, each time with a new answer, and
// compares how often each came first with the weights.
func TestShares(t *testing.T) {
	w := &world{t: t, Lab: peers.Lab(t)}
	w.file = w.File()
	peers.ServeTree(t, tools, w.file)
	peers.Unbound(t, tools, 0)
	newPostfix().conf(t, delivery{})
	newExim().conf(t, delivery{})

	first := map[string]func(t *testing.T) string{
		"Postfix": func(t *testing.T) string {
			return firstHost(t, `TLS connection established to (\S+)\[`, postfix.Output(t, "/usr/sbin/posttls-finger", "-o", "inet_interfaces=all", "-c", "-l", "may", w.file.Zone))
		},
		"exim": func(t *testing.T) string {
			return firstHost(t, `(?m)^\s*host (\S+) `, exim.Output(t, "/usr/sbin/exim4", "-bt", "nobody@"+w.file.Zone))
		},
	}
	cl := admin.NewClient(w.site(1).Dir, node.SocketFile)
	for _, weights := range [][2]uint32{{1, 1}, {3, 1}, {1, 0}} {
		for n, weight := range weights {
			if _, err := cl.SetWeight(t.Context(), w.site(n+1).Name, weight); err != nil {
				t.Fatal(err)
			}
		}
		for program, choose := range first {
			t.Run(fmt.Sprintf("%s at %d:%d", program, weights[0], weights[1]), func(t *testing.T) {
				seen := map[string]int{}
				for range choices {
					seen[choose(t)]++
				}
				statistic := 0.0
				for n, weight := range weights {
					got, want := float64(seen[w.site(n+1).Host]), choices*float64(weight)/float64(weights[0]+weights[1])
					switch {
					case want > 0:
						statistic += (got - want) * (got - want) / want
					case got > 0:
						t.Errorf("%v: a host of weight 0 came first", seen)
					}
				}
				t.Logf("first: %v, chi-square %.2f", seen, statistic)
				// Chi-square with one degree of freedom: beyond 24 once in a million runs.
				if seen[w.site(1).Host]+seen[w.site(2).Host] != choices || statistic > 24 {
					t.Errorf("first: %v, chi-square %s", seen, strconv.FormatFloat(statistic, 'f', 1, 64))
				}
			})
		}
	}
}

func firstHost(t *testing.T, pattern, out string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no host is named:\n%s", out)
	}
	return m[1]
}
