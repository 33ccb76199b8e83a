package node

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func tlsaAnswer(keys ...string) *dns.Msg {
	m := new(dns.Msg)
	for _, key := range keys {
		m.Answer = append(m.Answer, &dns.TLSA{Usage: 3, Selector: 1, MatchingType: 1, Certificate: key})
	}
	return m
}

// A key that is announced may be used twice the TTL after every site answers it; a site that
// does not answer may still have told others what it knew before.
func TestKeyAnnounced(t *testing.T) {
	t.Parallel()
	refused := new(dns.Msg)
	refused.Rcode = dns.RcodeRefused
	for name, tc := range map[string]struct {
		other *dns.Msg
		ready time.Duration // 0: never
		why   string
	}{
		"both answer it":       {tlsaAnswer("old", "new"), 10 * time.Minute, "until "},
		"the other lacks it":   {tlsaAnswer("old"), 0, "not every site is known to answer TLSA records with it: msgw2 lacks it"},
		"the other knows none": {tlsaAnswer(), 10 * time.Minute, "until "},
		"the other is silent":  {nil, 70 * time.Minute, "msgw2 does not say: no answer"},
		"the other refuses":    {refused, 70 * time.Minute, "msgw2 does not say: REFUSED"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var a announced
				start := time.Now()
				look := func() error {
					a.look([]string{"new"}, true, time.Now(), func(site string) (*dns.Msg, error) {
						if site == "msgw1" {
							return tlsaAnswer("old", "new"), nil
						}
						if tc.other == nil {
							return nil, errors.New("no answer")
						}
						return tc.other, nil
					}, "msgw1", []string{"msgw1", "msgw2"})
					return a.ready("new", true, ttlTLSA, time.Now())
				}
				if err := look(); err == nil || !strings.Contains(err.Error(), tc.why) {
					t.Errorf("at first: %v", err)
				}
				for time.Since(start) < 2*time.Hour && look() != nil {
					time.Sleep(announcedLook)
				}
				got := time.Since(start)
				if tc.ready == 0 && got < 2*time.Hour || tc.ready != 0 && (got < tc.ready || got > tc.ready+time.Minute) {
					t.Errorf("used after %v, expected %v", got, tc.ready)
				}
			})
		})
	}
}

// Without TLSA records a key may be used at once, but not right after there were some.
func TestKeyWithoutTLSA(t *testing.T) {
	t.Parallel()
	var a announced
	now := time.Now()
	if err := a.ready("new", false, ttlTLSA, now); err != nil {
		t.Error(err)
	}
	a.look(nil, true, now, nil, "", nil)
	if err := a.ready("new", false, ttlTLSA, now.Add(9*time.Minute)); err == nil {
		t.Error("used while resolvers may have records without it")
	}
	if err := a.ready("new", false, ttlTLSA, now.Add(11*time.Minute)); err != nil {
		t.Error(err)
	}
}
