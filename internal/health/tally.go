package health

import "time"

// tally turns the results of one kind of probe into good or bad with three
// thresholds, as gdnsd does, so that neither a lost packet nor a flapping link
// moves the answer.
type tally struct {
	ever      bool // it has succeeded once
	bad       bool
	failures  int // not yet forgiven
	successes int // in a row
	last      error
	badSince  time.Time
	flaps     int // times it went bad lately
}

func (t *tally) good() bool { return !t.bad }

// add counts one result.
func (t *tally) add(err error, now time.Time, o Options) {
	t.last = err
	if err != nil {
		t.successes = 0
		if t.failures = min(t.failures+1, o.Down); t.failures >= o.Down {
			t.fail(now, o)
		}
		return
	}
	t.ever = true
	t.successes++
	if t.bad {
		hold := min(o.Hold<<min(t.flaps-1, 20), o.MaxHold)
		if t.successes >= o.Up && now.Sub(t.badSince) >= hold {
			t.bad, t.failures = false, 0
		}
		return
	}
	if t.successes >= o.OK {
		t.failures = 0
	}
}

// fail makes it bad whatever the thresholds say.
func (t *tally) fail(now time.Time, o Options) {
	t.failures, t.successes = o.Down, 0
	if t.bad {
		return
	}
	// Flaps are forgotten once it was good for the longest hold.
	if now.Sub(t.badSince) > 2*o.MaxHold {
		t.flaps = 0
	}
	t.bad, t.badSince = true, now
	t.flaps++
}
