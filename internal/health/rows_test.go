package health

import (
	"os"
	"regexp"
	"strconv"
	"testing"
	"testing/synctest"
)

// TestRows walks the decision table: what each combination of observations means.
func TestRows(t *testing.T) {
	t.Parallel()
	type change = func(*world)
	wit := func(me, you View) change {
		return func(w *world) {
			w.reports["wit"] = Report{Accepting: true, Views: map[string]View{"me": me, "you": you}}
		}
	}
	seen, publicLost, unseen, noWayOut := View{true, true, true}, View{true, false, true}, View{false, false, true}, View{true, true, false}
	report := func(name string, r Report) change { return func(w *world) { w.reports[name] = r } }
	disk, drained := Report{Reason: "disk"}, Report{Accepting: true, Drained: true}
	silent := func(name string) change { return func(w *world) { delete(w.reports, name) } }
	public := func(name string) change { return func(w *world) { delete(w.smtp, name+":25") } }
	dns := func(name string) change { return func(w *world) { delete(w.dns, name+":53") } }
	cutOff := func(w *world) { w.cutOff = true }

	rows := map[Row]bool{}
	for name, tc := range map[string]struct {
		witness bool
		change  []change
		me, you State
		row     Row // of you; of me where that is told about
		of      string
	}{
		"all well":                                        {false, nil, Up, Up, RowWell, "you"},
		"it cannot accept":                                {false, []change{report("you", disk)}, Up, Down, RowWish, "you"},
		"it is drained":                                   {false, []change{report("you", drained)}, Up, Drained, RowWish, "you"},
		"both are drained":                                {false, []change{report("me", drained), report("you", drained)}, Drained, Drained, RowWish, "you"},
		"I am drained, it is gone":                        {false, []change{silent("you"), public("you"), report("me", drained)}, Drained, Down, RowAlone, "you"},
		"I am drained and cannot accept":                  {false, []change{report("me", Report{Reason: "disk", Drained: true})}, Down, Up, RowWish, "me"},
		"I cannot accept":                                 {false, []change{report("me", disk)}, Down, Up, RowWish, "me"},
		"my SMTP is dead":                                 {false, []change{public("me")}, Down, Up, RowOwn, "me"},
		"the peer path is cut":                            {false, []change{silent("you")}, Up, Up, RowPath, "you"},
		"gone, no witness":                                {false, []change{silent("you"), public("you")}, Up, Down, RowAlone, "you"},
		"gone, and no anchor answers":                     {false, []change{silent("you"), public("you"), dns("you"), cutOff}, Up, Up, RowIsolated, "you"},
		"gone, no anchor, the witness answers":            {true, []change{silent("you"), public("you"), cutOff, wit(seen, unseen)}, Up, Down, RowConfirmed, "you"},
		"no anchor answers, all else is well":             {false, []change{cutOff}, Up, Up, RowWell, "you"},
		"nothing answers":                                 {false, []change{func(w *world) { w.reports, w.smtp, w.dns = nil, nil, nil }}, Down, Down, RowAlone, "you"},
		"apart, the witness sees both":                    {true, []change{silent("you"), public("you"), wit(seen, seen)}, Up, Up, RowApart, "you"},
		"gone, the witness agrees":                        {true, []change{silent("you"), public("you"), wit(seen, unseen)}, Up, Down, RowConfirmed, "you"},
		"the witness cannot reach me":                     {true, []change{wit(publicLost, seen)}, Down, Up, RowInbound, "me"},
		"gone, the witness sees nobody":                   {true, []change{silent("you"), public("you"), wit(unseen, unseen)}, Up, Down, RowAlone, "you"},
		"the witness sees nobody":                         {true, []change{wit(unseen, unseen)}, Up, Up, RowWell, "me"},
		"gone, the witness does not answer":               {true, []change{silent("you"), public("you"), silent("wit")}, Up, Down, RowAlone, "you"},
		"its 25 is dead":                                  {false, []change{public("you")}, Up, Down, RowPublic, "you"},
		"its 53 is dead":                                  {false, []change{dns("you")}, Up, Down, RowPublic, "you"},
		"its 25 is dead from here only":                   {true, []change{public("you"), wit(seen, seen)}, Up, Up, RowElsewhere, "you"},
		"its 25 is dead, the witness's way out is closed": {true, []change{public("you"), wit(seen, noWayOut)}, Up, Down, RowPublic, "you"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := fine()
				m := monitor(w, tc.witness)
				rounds(m, 12)
				if me, you := states(m); me != Up || you != Up {
					t.Fatalf("at first: %s %s", me, you)
				}
				for _, f := range tc.change {
					w.set(f)
				}
				rounds(m, 3)
				vs, _, _ := m.Verdicts()
				if me, you := states(m); me != tc.me || you != tc.you {
					t.Errorf("%s %s, want %s %s: %+v", me, you, tc.me, tc.you, vs)
				}
				for _, v := range vs {
					if v.Name == tc.of && v.Row != tc.row {
						t.Errorf("row %d, want %d: %+v", v.Row, tc.row, v)
					}
				}
				if isolated := m.Isolated(); isolated != (tc.row == RowIsolated) {
					t.Errorf("isolated: %v", isolated)
				}
			})
		})
		rows[tc.row] = true
	}

	// Every row of the document is played here or in TestBlockedEgressIsIgnored.
	doc, err := os.ReadFile("../../docs/steering.md")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := map[Row]bool{RowUnusable: true, 7: true, 11: true, 12: true}
	found := regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllSubmatch(doc, -1)
	if len(found) < 14 {
		t.Errorf("docs/steering.md has %d rows", len(found))
	}
	for _, f := range found {
		if n, _ := strconv.Atoi(string(f[1])); !rows[Row(n)] && !elsewhere[Row(n)] {
			t.Errorf("row %d of docs/steering.md is not played", n)
		}
	}
}
