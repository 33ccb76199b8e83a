package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestExchange follows a mail exchanger that is no node: it has no peer port, a failure
// counts once it has answered, and another node that reaches it outweighs that.
func TestExchange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := fine()
		var answers atomic.Bool
		where := "192.0.2.7:25"
		m := New(Options{Prober: w, Log: slog.New(slog.DiscardHandler), Targets: func() []Target {
			return []Target{{Name: "me", Self: true, Site: true, SMTP: []string{"me:25"}, DNS: []string{"me:53"}}, {Name: "wit"},
				{Name: "old.example.com", SMTP: []string{where}, Exchange: func(context.Context) error {
					if answers.Load() {
						return nil
					}
					return errors.New("refused")
				}}}
		}})
		verdict := func() Verdict {
			t.Helper()
			vs, _, _ := m.Verdicts()
			if len(vs) != 2 || vs[1].Name != "old.example.com" {
				t.Fatalf("verdicts %+v", vs)
			}
			return vs[1]
		}
		view := func(v View) {
			w.set(func(w *world) {
				w.reports["wit"] = Report{Accepting: true, Views: map[string]View{"old.example.com": v, "me": {true, true, true}}}
			})
		}
		rounds(m, 20)
		if v := verdict(); v.State != Up || !strings.Contains(v.Reason, "never answered from here") || !strings.Contains(v.Observations[0], "ignored (refused)") {
			t.Errorf("never answered: %+v", v)
		}
		if v := m.Views()["old.example.com"]; v.Usable || v.Public {
			t.Errorf("view of one that never answered: %+v", v)
		}
		if _, settled, _ := m.Verdicts(); !settled {
			t.Error("one that never answered keeps the answers unsettled")
		}
		answers.Store(true)
		rounds(m, 20)
		if v := verdict(); v.State != Up || v.Observations[0] != "SMTP: good" {
			t.Errorf("answers: %+v", v)
		}
		answers.Store(false)
		rounds(m, 2)
		if v := verdict(); v.State != Up {
			t.Errorf("after two failures: %+v", v)
		}
		rounds(m, 1)
		if v := verdict(); v.State != Down || !strings.Contains(v.Reason, "refused") {
			t.Errorf("after three failures: %+v", v)
		}
		view(View{Peer: true}) // says nothing of its SMTP
		rounds(m, 1)
		if v := verdict(); v.State != Down {
			t.Errorf("nobody reaches it: %+v", v)
		}
		view(View{Public: true, Usable: true})
		rounds(m, 1)
		if v := verdict(); v.State != Up || !strings.Contains(v.Reason, "does for wit") {
			t.Errorf("the witness reaches it: %+v", v)
		}
		view(View{Usable: true})
		where = "192.0.2.8:25" // another address: what was seen counts no more
		rounds(m, 20)
		if v := verdict(); v.State != Up || !strings.Contains(v.Reason, "never answered") {
			t.Errorf("at another address: %+v", v)
		}
	})
}

func TestProbeExchange(t *testing.T) {
	t.Parallel()
	serve := func(greeting string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s\r\n", greeting)
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						break
					}
					code := "250"
					if strings.HasPrefix(line, "QUIT") {
						code = "221"
					}
					fmt.Fprintf(c, "%s ok\r\n", code)
				}
				c.Close()
			}
		}()
		return l.Addr().String()
	}
	good, busy := serve("220 old"), serve("554 go away")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// Plain text is enough, and so is one of its addresses.
	if err := ProbeExchange(ctx, []string{busy, good}, ""); err != nil {
		t.Error(err)
	}
	if err := ProbeExchange(ctx, []string{busy}, "msgw1.example.com"); err == nil || !strings.Contains(err.Error(), "go away") {
		t.Errorf("a greeting of 554: %v", err)
	}
	if err := ProbeExchange(ctx, nil, ""); err == nil {
		t.Error("no address is no failure")
	}
}
