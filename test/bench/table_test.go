//go:build bench && peers

package bench

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
)

// outcome of one load on one system. Times are in milliseconds.
type outcome struct {
	rate     float64 // acknowledged a second
	stored   float64 // the same, found where a reader finds it; warm-up and delivery included
	p50, p99 float64 // from the final dot to the 250
	cpu      float64 // of all processes, for each message, delivery included
	rss      float64 // MiB, of all processes, the most that was seen
	flush    float64 // p99 of a flush, of disks
}

// key of a row.
type key struct {
	system string
	cell   cell
}

// results of a run.
type results struct {
	flush  [2]float64      // p50 and p99 of a flush of 4 KB
	idle   float64         // cores that all systems take unloaded
	copied map[string]bool // systems of which a second site flushed before the 250
	cells  []cell
	order  []string // of systems
	rows   map[key][]outcome
}

func (r *results) add(system string, c cell, o outcome) {
	if r.rows == nil {
		r.rows = map[key][]outcome{}
	}
	if !slices.Contains(r.order, system) {
		r.order = append(r.order, system)
	}
	r.rows[key{system, c}] = append(r.rows[key{system, c}], o)
}

// median of a figure over the repetitions; NaN where there is none.
func (r *results) median(system string, c cell, of func(outcome) float64) float64 {
	var all []float64
	for _, o := range r.rows[key{system, c}] {
		all = append(all, of(o))
	}
	if len(all) == 0 {
		return math.NaN()
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func rate(o outcome) float64   { return o.rate }
func stored(o outcome) float64 { return o.stored }
func p50(o outcome) float64    { return o.p50 }
func p99(o outcome) float64    { return o.p99 }
func cpu(o outcome) float64    { return o.cpu }
func rss(o outcome) float64    { return o.rss }
func flush(o outcome) float64  { return o.flush }

// number of about three digits; a dash where there is none.
func digits(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// table returns everything that was measured.
func (r *results) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d cores. A flush of 4 KB takes %s ms, p99 %s ms. All systems together take %.2f cores while idle.\n\n",
		runtime.NumCPU(), digits(r.flush[0]), digits(r.flush[1]), r.idle)
	fmt.Fprintln(&b, "| size, senders, way | system | msgs/s | stored/s | p50 ms | p99 ms | CPU ms/msg | RSS MiB | × mail_crypt | × Postfix | × sink |")
	fmt.Fprintln(&b, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, c := range r.cells {
		for _, s := range r.order {
			if len(r.rows[key{s, c}]) == 0 {
				continue
			}
			label := s
			if (s == pairName || s == distantName) && !r.copied[s] {
				label += " (one copy only)"
			}
			m := r.median(s, c, rate)
			fmt.Fprintf(&b, "| %s | %s | %s%s |", c, label, digits(m), r.spread(s, c))
			for _, of := range []func(outcome) float64{stored, p50, p99, cpu, rss} {
				fmt.Fprintf(&b, " %s |", digits(r.median(s, c, of)))
			}
			for _, other := range []string{dovecotName, postfixName, sinkName} {
				fmt.Fprintf(&b, " %s |", digits(m/r.median(other, c, rate)))
			}
			fmt.Fprintln(&b)
		}
	}
	return b.String()
}

// spread returns the least and the most of several rates.
func (r *results) spread(system string, c cell) string {
	all := r.rows[key{system, c}]
	if len(all) < 2 {
		return ""
	}
	least, most := math.Inf(1), math.Inf(-1)
	for _, o := range all {
		least, most = min(least, o.rate), max(most, o.rate)
	}
	return fmt.Sprintf(" (%s–%s)", digits(least), digits(most))
}

// aims returns what was aimed at and what was reached.
func (r *results) aims() string {
	var b strings.Builder
	fmt.Fprintln(&b, "| aim | at | wanted | reached | |\n|---|---|---:|---:|---|")
	line := func(aim string, c cell, wanted, reached float64, atLeast bool, unit string) {
		verdict := "met"
		switch {
		case math.IsNaN(reached) || math.IsNaN(wanted):
			verdict = "not measured"
		case atLeast && reached < wanted || !atLeast && reached > wanted:
			verdict = "short"
		}
		sign := map[bool]string{true: "≥", false: "≤"}[atLeast]
		fmt.Fprintf(&b, "| %s | %s | %s %s%s | %s%s | %s |\n", aim, c, sign, digits(wanted), unit, digits(reached), unit, verdict)
	}
	ratio := func(a, b string, c cell) float64 { return r.median(a, c, rate) / r.median(b, c, rate) }
	// What two sites do counts only if both have the message.
	two := func(s string, v float64) float64 {
		if !r.copied[s] {
			return math.NaN()
		}
		return v
	}
	line("one site ÷ Dovecot mail_crypt", many, 6, ratio(siteName, dovecotName, many), true, "")
	line("one site ÷ Postfix accepted", many, 3.5, ratio(siteName, postfixName, many), true, "")
	line("one site ÷ sink of go-smtp", many, 0.5, ratio(siteName, sinkName, many), true, "")
	line("two sites ÷ one site", many, 0.5, two(pairName, ratio(pairName, siteName, many)), true, "")
	line("one site ÷ Postfix accepted", oneSmall, 1.5, ratio(siteName, postfixName, oneSmall), true, "")
	line("CPU of one site", many, 1, r.median(siteName, many, cpu), false, " ms")
	for _, c := range []cell{oneSmall, one, many} {
		rtt := float64(roundTrip.Milliseconds())
		line("p99 of two sites 20 ms apart: 20 ms and 3 flushes (p99 of the disk's under this load)", c,
			rtt+3*r.median(cipherName, c, flush), two(distantName, r.median(distantName, c, p99)), false, " ms")
	}
	return b.String()
}
