package health

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Row is a row of the decision table in docs/steering.md: what the observations of one site
// mean, and the state that follows. No row removes a host; Down puts it last.
type Row int

const (
	RowWell      Row = 1  // it accepts mail, and its ports answer
	RowWish      Row = 2  // it says itself that it is drained or takes no mail
	RowOwn       Row = 3  // this node: its own SMTP does not answer
	RowPath      Row = 4  // only the path between the peer ports is cut
	RowAlone     Row = 5  // out of reach, and nobody else can tell
	RowIsolated  Row = 6  // this node is cut off from everything
	RowApart     Row = 8  // out of reach from here, but not for a third node
	RowConfirmed Row = 9  // out of reach, also for a third node
	RowInbound   Row = 10 // this node: a third one cannot reach its public ports
	RowPublic    Row = 13 // its peer port answers, its public ports do not
	RowElsewhere Row = 14 // its public ports do not answer from here, but for a third node
	RowUnusable  Row = 15 // its peer port answers; its SMTP never did from here, and does not count
)

// judge decides about one site from what this node has seen of it and what third
// nodes have.
func judge(t Target, s *seen, others map[string]View, isolated bool) Verdict {
	if t.Exchange != nil {
		return judgeExchange(s, others)
	}
	v := Verdict{Observations: observations(t, s, others)}
	v.State, v.Row, v.Reason = decide(t, s, others, isolated)
	return v
}

func decide(t Target, s *seen, others map[string]View, isolated bool) (State, Row, string) {
	own := s.view()
	reached := seenBy(others, View.reached)
	reachedPublic := seenBy(others, func(v View) bool { return v.Public && v.Usable })
	lostPublic := seenBy(others, func(v View) bool { return !v.Public && v.Usable })
	lost := seenBy(others, func(v View) bool { return !v.reached() })

	switch {
	// What a node says of itself needs no second opinion.
	case s.report != nil && !s.report.Accepting:
		return Down, RowWish, "it does not accept mail: " + s.report.Reason
	case s.report != nil && s.report.Drained:
		if until := s.report.DrainedUntil; !until.IsZero() {
			return Drained, RowWish, "it is drained until " + until.Local().Format(time.DateTime)
		}
		return Drained, RowWish, "it is drained"

	case t.Self && !s.smtp.good():
		return Down, RowOwn, fmt.Sprintf("own SMTP port does not answer: %v", s.smtp.last)
	case t.Self && lostPublic != "" && reachedPublic == "":
		return Down, RowInbound, lostPublic + " cannot reach the public ports here"
	case t.Self && isolated:
		return Up, RowIsolated, "this node reaches neither another node nor an anchor: as configured"
	case t.Self:
		return Up, RowWell, "accepts mail"

	case own.Peer && !own.Public && own.Usable && reachedPublic == "":
		return Down, RowPublic, fmt.Sprintf("its public ports do not answer: %v", firstError(s.smtp.last, s.dns.last))
	case own.Peer && !own.Public && own.Usable:
		return Up, RowElsewhere, "its public ports do not answer from here, but do for " + reachedPublic
	case own.Peer && s.smtp.bad:
		return Up, RowUnusable, "accepts mail; its SMTP port has never answered from here, and does not count"
	case own.Peer:
		return Up, RowWell, "accepts mail"

	case own.Public && own.Usable:
		return Up, RowPath, "its public ports answer; only the path between the peer ports is cut"
	case reached != "":
		return Up, RowApart, "out of reach from here, but not for " + reached
	case isolated:
		return Up, RowIsolated, "this node reaches neither another node nor an anchor: as configured"
	case lost != "":
		return Down, RowConfirmed, fmt.Sprintf("out of reach from here and for %s: %v", lost, firstError(s.peer.last, s.gone.last))
	default:
		return Down, RowAlone, fmt.Sprintf("neither peer port nor public ports answer: %v", firstError(s.peer.last, s.gone.last))
	}
}

func seenBy(others map[string]View, ok func(View) bool) string {
	for _, name := range slices.Sorted(maps.Keys(others)) {
		if ok(others[name]) {
			return name
		}
	}
	return ""
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func observations(t Target, s *seen, others map[string]View) []string {
	word := func(name string, ta tally) string {
		switch {
		case !ta.ever && !t.Self && ta.bad:
			return fmt.Sprintf("%s: never answered from here, ignored (%v)", name, ta.last)
		case ta.bad:
			return fmt.Sprintf("%s: bad (%v)", name, ta.last)
		case ta.last != nil:
			return fmt.Sprintf("%s: failing (%v)", name, ta.last)
		}
		return name + ": good"
	}
	obs := []string{word("peer port", s.peer), word("public SMTP", s.smtp), word("public DNS", s.dns)}
	for _, name := range slices.Sorted(maps.Keys(others)) {
		o := others[name]
		var parts []string
		for what, ok := range map[string]bool{"peer port": o.Peer, "public ports": o.Public && o.Usable} {
			if ok {
				parts = append(parts, what)
			}
		}
		slices.Sort(parts)
		if len(parts) == 0 {
			parts = []string{"nothing"}
		}
		obs = append(obs, name+" reaches: "+strings.Join(parts, ", "))
	}
	return obs
}
