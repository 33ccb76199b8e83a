package health

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// judge decides about one site from what this node has seen of it and what third
// nodes have. No case removes a host: "down" puts it last.
func judge(t Target, s *seen, others map[string]View) Verdict {
	if t.Exchange != nil {
		return judgeExchange(s, others)
	}
	v := Verdict{Observations: observations(t, s, others)}
	v.State, v.Reason = decide(t, s, others)
	return v
}

func decide(t Target, s *seen, others map[string]View) (State, string) {
	own := s.view()
	reached := seenBy(others, func(v View) bool { return v.Peer || v.Public && v.Usable })
	reachedPublic := seenBy(others, func(v View) bool { return v.Public && v.Usable })
	lostPublic := seenBy(others, func(v View) bool { return !v.Public && v.Usable })

	switch {
	// What a node says of itself needs no second opinion.
	case s.report != nil && !s.report.Accepting:
		return Down, "it does not accept mail: " + s.report.Reason
	case s.report != nil && s.report.Drained:
		if until := s.report.DrainedUntil; !until.IsZero() {
			return Drained, "it is drained until " + until.Local().Format(time.DateTime)
		}
		return Drained, "it is drained"

	case t.Self && !s.smtp.good():
		return Down, fmt.Sprintf("own SMTP port does not answer: %v", s.smtp.last)
	case t.Self && lostPublic != "" && reachedPublic == "":
		return Down, lostPublic + " cannot reach the public ports here"
	case t.Self:
		return Up, "accepts mail"

	case own.Peer && !own.Public && own.Usable && reachedPublic == "":
		return Down, fmt.Sprintf("its public ports do not answer: %v", firstError(s.smtp.last, s.dns.last))
	case own.Peer && !own.Public && own.Usable:
		return Up, "its public ports do not answer from here, but do for " + reachedPublic
	case own.Peer:
		return Up, "accepts mail"

	case own.Public && own.Usable:
		return Up, "its public ports answer; only the path between the peer ports is cut"
	case reached != "":
		return Up, "out of reach from here, but not for " + reached
	default:
		return Down, fmt.Sprintf("neither peer port nor public ports answer: %v", s.peer.last)
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
