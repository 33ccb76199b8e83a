package health

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/emersion/go-smtp"
)

// noteExchange counts a probe of a mail exchanger that is no node.
func (s *seen) noteExchange(t Target, err error, now time.Time, o Options) {
	s.smtp.add(err, now, o)
	if !s.smtp.ever && s.smtp.failures >= o.Down && !s.reported {
		s.reported = true
		o.Log.Warn("the SMTP port of an exchange has never answered from here; many facilities block outgoing port 25, so it counts as up",
			"exchange", t.Name, "err", err)
	}
}

// judgeExchange decides about a mail exchanger that is no node. As with a site, a port that
// never answered says nothing, and one that another node reaches is not down.
func judgeExchange(s *seen, others map[string]View) Verdict {
	reached := seenBy(others, func(v View) bool { return v.Public && v.Usable })
	v := Verdict{State: Up, Row: RowWell}
	switch {
	case s.smtp.good():
		v.Reason = "its SMTP port answers"
	case !s.smtp.ever:
		v.Row, v.Reason = RowUnusable, "its SMTP port has never answered from here, which says nothing"
	case reached != "":
		v.Row, v.Reason = RowElsewhere, "its SMTP port does not answer from here, but does for "+reached
	default:
		v.State, v.Row, v.Reason = Down, RowPublic, fmt.Sprintf("its SMTP port does not answer: %v", s.smtp.last)
	}
	word := "good"
	switch {
	case s.smtp.bad && !s.smtp.ever:
		word = fmt.Sprintf("never answered from here, ignored (%v)", s.smtp.last)
	case s.smtp.bad:
		word = fmt.Sprintf("bad (%v)", s.smtp.last)
	case s.smtp.last != nil:
		word = fmt.Sprintf("failing (%v)", s.smtp.last)
	}
	v.Observations = []string{"SMTP: " + word}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		what := "nothing"
		if o := others[name]; o.Public && o.Usable {
			what = "SMTP"
		}
		v.Observations = append(v.Observations, name+" reaches: "+what)
	}
	return v
}

// ProbeExchange looks at the SMTP port of a mail exchanger that is no node, at all of its
// addresses together, of which one that answers is enough: greeting and EHLO. TLS is not asked
// for: senders decide about that, and an old gateway may have none. self is what to say in
// EHLO, as with ProbeSMTP.
func ProbeExchange(ctx context.Context, addresses []string, self string) error {
	return all(addresses, func(a string) error { return probeHello(ctx, a, self) })
}

func probeHello(ctx context.Context, address, self string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return hello(smtp.NewClient(conn), conn, self)
}
