//go:build faults

package faults

import (
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRandomStory lets one misfortune follow the other, some at the same time.
func TestRandomStory(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(seed(t), 9))
	p, proxies := through(t, time.Duration(rng.IntN(30))*time.Millisecond)
	p.times = []string{"--silent", "2s", "--adopt", "6s", "--adopt-confirmed", "5s", "--wait", "10s", "--return", "5s"}
	a := newAppliance(t, p)
	var told []string
	do := func(what string, f func()) {
		told = append(told, what)
		f()
	}
	one := func() {
		m, x := a.sites[rng.IntN(2)], proxies[rng.IntN(2)]
		how := []string{drop, reject}[rng.IntN(2)]
		switch rng.IntN(9) {
		case 0:
			do("all cut by "+how, func() { a.cut(how, 0, 1) })
			// The peer link goes by the proxies, which are behind the same line.
			do("proxies stall", func() { proxies[0].stall(); proxies[1].stall() })
		case 1:
			do("one proxy stalls", x.stall)
		case 2:
			do("proxies sever", func() { proxies[0].sever(); proxies[1].sever() })
		case 3:
			do("a proxy trickles", func() { x.trickle(5000 + rng.IntN(100_000)) })
		case 4:
			do("a proxy breaks connections", func() { x.breakAfter(2_500_000 + rng.IntN(3_000_000)) })
		case 5, 6:
			do(m.name+" is killed", m.kill)
		case 7:
			do(m.name+" stands still", func() { m.signal(syscall.SIGSTOP) })
		case 8:
			do("the witness is killed", a.witness.kill)
		}
	}
	for range rounds(t, 8) {
		a.flow(5, 0)
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
		one()
		if rng.IntN(3) == 0 {
			time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
			one()
		}
		time.Sleep(time.Duration(200+rng.IntN(5000)) * time.Millisecond)
		do("repaired", func() {
			proxies[0].flow()
			proxies[1].flow()
			a.repair(0, 1)
		})
		if rng.IntN(2) == 0 {
			a.heals()
		}
	}
	t.Log(strings.Join(told, ", "))
	a.finish()
}
