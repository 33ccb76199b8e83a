package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/admin"
	"msgw/internal/health"
)

// A drain is what its file says, in the form of today and of before, and ends by itself,
// also while the node was off.
func TestDrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		open := func() *drain {
			t.Helper()
			d, err := openDrain(dir)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := open()
		if d.get().Drained {
			t.Error("drained at first")
		}
		start := time.Now()
		if s, err := d.set(30 * time.Minute); err != nil || !s.Since.Equal(start) || !s.Until.Equal(start.Add(30*time.Minute)) {
			t.Errorf("%+v, %v", s, err)
		}
		time.Sleep(20 * time.Minute)
		for _, d := range []*drain{d, open()} {
			if s := d.get(); !s.Drained || !s.Since.Equal(start) {
				t.Errorf("after 20 minutes of 30: %+v", s)
			}
			if over, err := d.expire(); over || err != nil {
				t.Errorf("expired: %v, %v", over, err)
			}
		}
		// Said once more, it gets another end and keeps its beginning.
		if s, err := d.set(time.Hour); err != nil || !s.Since.Equal(start) || !s.Until.Equal(start.Add(80*time.Minute)) {
			t.Errorf("%+v, %v", s, err)
		}
		time.Sleep(time.Hour - time.Nanosecond)
		if !d.get().Drained || !open().get().Drained {
			t.Error("it has ended early")
		}
		time.Sleep(time.Nanosecond)
		if d.get() != (drained{}) || open().get() != (drained{}) {
			t.Error("its time is over and it goes on")
		}
		if over, err := d.expire(); !over || err != nil {
			t.Errorf("expired: %v, %v", over, err)
		}
		if over, err := d.expire(); over || err != nil {
			t.Errorf("expired twice: %v, %v", over, err)
		}
		if open().state.Drained {
			t.Error("a clock that is set back brings it back")
		}

		if s, err := d.set(0); err != nil || !s.Until.IsZero() {
			t.Errorf("%+v, %v", s, err)
		}
		time.Sleep(365 * 24 * time.Hour)
		if !open().get().Drained {
			t.Error("one without an end has ended")
		}
		if err := d.end(); err != nil || d.get().Drained || open().get().Drained {
			t.Errorf("taken back, %v, and drained", err)
		}

		path := filepath.Join(dir, drainFile)
		for text, want := range map[string]bool{"true": true, "true\n": true, "false": false, `{"drained":true}`: true, "{}": false} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if s := open().get(); s.Drained != want || want && !s.Since.Equal(time.Now()) || !s.Until.IsZero() {
				t.Errorf("%q: %+v", text, s)
			}
		}
		for _, text := range []string{"", "yes", "[]", `{"drained":1}`, `{"drained":true`} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var oe *OperatorError
			if _, err := openDrain(dir); !errors.As(err, &oe) || oe.Hint == "" {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}

func TestCheckDrain(t *testing.T) {
	t.Parallel()
	for _, ok := range []admin.SetDrain{{}, {Drained: true}, {Drained: true, For: time.Minute}, {Drained: true, For: 720 * time.Hour}} {
		if err := checkDrain(ok); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	for _, bad := range []admin.SetDrain{{For: time.Hour}, {Drained: true, For: time.Minute - 1}, {Drained: true, For: 720*time.Hour + 1}, {Drained: true, For: -time.Hour}} {
		var e *admin.Error
		if err := checkDrain(bad); !errors.As(err, &e) || e.Status != 400 {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// Why a drained site must stay, in every state of its copies.
func TestStayFor(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	long, justNow := now.Add(-time.Hour), now.Add(-25*time.Second)
	const (
		come     = "senders may still come for 95 s"
		silent   = "the other site does not answer"
		compared = "the sites have not compared what they hold yet"
	)
	for name, tc := range map[string]struct {
		asked   time.Time
		copies  admin.Copies
		waiting int
		alone   bool
		want    []string
	}{
		"in sync":                {long, admin.Copies{State: "SYNC", Compared: true}, 7, false, nil},
		"just begun":             {justNow, admin.Copies{State: "SYNC", Compared: true}, 0, false, []string{come}},
		"the last moment":        {now.Add(-noticeTime + 1), admin.Copies{State: "SYNC", Compared: true}, 0, false, []string{"senders may still come for 1 s"}},
		"the moment":             {now.Add(-noticeTime), admin.Copies{State: "SYNC", Compared: true}, 0, false, nil},
		"the clock was set back": {now.Add(time.Hour), admin.Copies{State: "SYNC", Compared: true}, 0, false, []string{"senders may still come for 120 s"}},
		"catching up":            {long, admin.Copies{State: "CATCHUP", Compared: true, Single: 3}, 3, false, []string{"3 messages have one copy only"}},
		"catching up, one":       {justNow, admin.Copies{State: "CATCHUP", Compared: true, Single: 1}, 3, false, []string{come, "1 message has one copy only"}},
		"not compared":           {long, admin.Copies{State: "CATCHUP"}, 3, false, []string{compared}},
		"silent":                 {long, admin.Copies{State: "HOLD"}, 3, false, []string{silent}},
		"gone":                   {long, admin.Copies{State: "DEGRADED", Compared: true, Single: 3}, 3, false, []string{silent, "3 messages have one copy only"}},
		"its disk is full":       {long, admin.Copies{State: "DEGRADED", Compared: true, Trouble: "disk full", Single: 2}, 3, false, []string{"the other site does not store: disk full", "2 messages have one copy only"}},
		"conflicts":              {long, admin.Copies{State: "CATCHUP", Compared: true, Conflicts: 1}, 3, false, []string{"the copies are in CATCHUP; `msgw status` at that node says why"}},
		"one site":               {long, admin.Copies{State: "ALONE"}, 3, true, []string{"there is no other site that takes mail meanwhile; 3 messages wait there, with one copy only"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := stayFor(now, tc.asked, tc.copies, tc.waiting, !tc.alone); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// Senders are asked away since the drain began, or since there is a site to ask them to.
func TestAskedAway(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	at := func(minutes int) time.Time { return start.Add(time.Duration(minutes) * time.Minute) }
	is := func(name string, s health.State, since int) health.Verdict {
		return health.Verdict{Name: name, State: s, Since: at(since), Reason: "why"}
	}
	for name, tc := range map[string]struct {
		verdicts []health.Verdict
		since    int
		not      string
	}{
		"the other was up before":   {[]health.Verdict{is("a", health.Drained, 10), is("b", health.Up, 0)}, 10, ""},
		"this node was restarted":   {[]health.Verdict{is("a", health.Drained, 30), is("b", health.Up, 30)}, 10, ""},
		"the other came later":      {[]health.Verdict{is("a", health.Drained, 10), is("b", health.Up, 40)}, 40, ""},
		"not judged as drained yet": {[]health.Verdict{is("a", health.Up, 0), is("b", health.Up, 5)}, 10, ""},
		"the other is drained":      {[]health.Verdict{is("a", health.Drained, 10), is("b", health.Drained, 0)}, 10, "b does not take the mail instead: why"},
		"the other is down":         {[]health.Verdict{is("a", health.Drained, 10), is("b", health.Down, 0)}, 10, "b does not take the mail instead: why"},
		"nothing is known":          {nil, 10, "it is not known whether b takes the mail"},
	} {
		since, not := askedAway(at(10), "a", "b", tc.verdicts)
		if !since.Equal(at(tc.since)) || (tc.not == "") != (len(not) == 0) || tc.not != "" && not[0] != tc.not {
			t.Errorf("%s: %v, %q", name, since, not)
		}
	}
}

// A drain, and its end, are taken up at once, not when the next pulse is over.
func TestDrainIsNoticedAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := siteConfig(dir, 1)
		if err := Init(cfg, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
			t.Fatal(err)
		}
		a := startSite(t, &wires{listeners: map[string]*pipeListener{}}, cfg)
		defer a.stop()
		time.Sleep(healthEvery + time.Minute)
		for _, tc := range []struct {
			drained bool
			want    health.State
		}{{true, health.Drained}, {false, health.Up}} {
			if _, err := a.setOwnDrain(admin.SetDrain{Drained: tc.drained}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if vs, _, _ := a.health.Verdicts(); len(vs) != 1 || vs[0].State != tc.want {
				t.Errorf("a second after drain %v: %+v", tc.drained, vs)
			}
		}
	})
}
