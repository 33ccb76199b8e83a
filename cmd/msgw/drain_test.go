package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/admin"
)

// --wait ends when the node is safe, when it never will be, and when the time is over.
func TestAwaitSafe(t *testing.T) {
	t.Parallel()
	notYet := &admin.Drain{Missing: []string{"3 messages have one copy only"}}
	safeAfter := func(d time.Duration) func() admin.Peer {
		start := time.Time{}
		return func() admin.Peer {
			if start.IsZero() {
				start = time.Now()
			}
			if time.Since(start) >= d {
				return admin.Peer{Name: "b", Reachable: true, Drain: &admin.Drain{Safe: true}}
			}
			return admin.Peer{Name: "b", Reachable: true, Drain: notYet}
		}
	}
	always := func(p admin.Peer) func() admin.Peer { return func() admin.Peer { return p } }
	for name, tc := range map[string]struct {
		peer func() admin.Peer
		d    admin.Drain
		err  string // what it says; empty: it became safe
		min  time.Duration
		max  time.Duration
	}{
		"becomes safe":    {safeAfter(95 * time.Second), *notYet, "", 90 * time.Second, 100 * time.Second},
		"does not":        {safeAfter(time.Hour), *notYet, "cannot be switched off after 30m0s: not yet: 3 messages", 29 * time.Minute, 31 * time.Minute},
		"has one site":    {safeAfter(0), admin.Drain{Alone: true, Missing: []string{"there is no other site"}}, "without harm: not safe: there is no other site", 0, 0},
		"was undrained":   {always(admin.Peer{Name: "b", Reachable: true}), *notYet, "b is no longer drained", 0, 2 * time.Second},
		"does not answer": {always(admin.Peer{Name: "b"}), *notYet, "b does not answer", 29 * time.Minute, 31 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				err := awaitSafe(t.Context(), func(context.Context) (admin.Status, error) {
					return admin.Status{Node: "a", Peers: []admin.Peer{tc.peer()}}, nil
				}, "b", 30*time.Minute, tc.d)
				if took := time.Since(start); took < tc.min || took > tc.max {
					t.Errorf("took %v", took)
				}
				if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
					t.Errorf("%v, expected %q", err, tc.err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("no node is running")
		if err := awaitSafe(t.Context(), func(context.Context) (admin.Status, error) { return admin.Status{}, broken }, "a", time.Minute, *notYet); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
	})
}
