package raftstore

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRestrictions(t *testing.T) {
	t.Parallel()
	const box = "mbx-2a20342e96294505a35eb5c8364eb67c"
	s := &State{Cluster: "c", Mailboxes: map[string]Mailbox{box: {ID: box, Status: Active}, "mbx-gone": {ID: "mbx-gone", Status: Retired}}}
	set := func(ch SetRestrictions) string {
		t.Helper()
		next := s.clone()
		out := next.outcome(newCommand("a", ch, time.Now()), ch, 1)
		if out.Rejection != nil {
			return out.Rejection.Code
		}
		s = next
		return "made"
	}
	note := "Example Ltd"
	common := Restrictions{RequireTLS: Yes, MaxSize: 1 << 20, MaxRecipients: 7, Allow: []string{"google"}, ClientCA: SystemCAs}
	own := Restrictions{Allow: []string{Any}, RequireTLS: No, Dots: DotsReject, Clients: []string{"mail.example.net"}}
	for i, tc := range []struct {
		change SetRestrictions
		want   string
	}{
		{SetRestrictions{To: common}, "made"},
		{SetRestrictions{To: Restrictions{}}, "conflict"}, // another operator was quicker
		{SetRestrictions{ID: box, To: own, Description: &note}, "made"},
		{SetRestrictions{ID: box, From: common}, "conflict"},
		{SetRestrictions{ID: "mbx-none"}, "missing"},
		{SetRestrictions{ID: "mbx-gone"}, "missing"},
		{SetRestrictions{From: common, To: Restrictions{MaxSize: 1}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{MaxSize: 2 << 30}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{MaxRecipients: -1}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{MaxRecipients: 1001}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{RequireTLS: "maybe"}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{Dots: "maybe"}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{Allow: []string{""}}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{Allow: []string{Any, "google"}}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{Clients: []string{"a b"}}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{Allow: make([]string, 257)}}, "invalid"},
		{SetRestrictions{From: common, To: Restrictions{ClientCA: strings.Repeat("x", 64<<10+1)}}, "invalid"},
	} {
		if got := set(tc.change); got != tc.want {
			t.Errorf("change %d: %s, want %s", i, got, tc.want)
		}
	}
	m := s.Mailboxes[box]
	if !reflect.DeepEqual(s.Restrictions, common) || !reflect.DeepEqual(m.Restrictions, own) || m.Description != note {
		t.Errorf("%+v, %+v, %q", s.Restrictions, m.Restrictions, m.Description)
	}
	want := Restrictions{Allow: []string{Any}, RequireTLS: No, Dots: DotsReject, Clients: []string{"mail.example.net"}, ClientCA: SystemCAs, MaxSize: 1 << 20}
	if got := m.Restrictions.Over(s.Restrictions); !reflect.DeepEqual(got, want) {
		t.Errorf("a mailbox's over those of all: %+v, want %+v", got, want)
	}
	var rej *Rejection
	if err := (Restrictions{Dots: "x"}).check(); !errors.As(err, &rej) || rej.Code != "invalid" {
		t.Error(err)
	}
}
