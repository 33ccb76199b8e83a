package node

import (
	"strings"
	"testing"

	"msgw/raftstore"
)

// What an operator wants is checked although it does not count yet: once it does, mail
// would wait until it is lost.
func TestCheckRestrictions(t *testing.T) {
	t.Parallel()
	broken := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	for _, tc := range []struct {
		raftstore.Restrictions
		want string
	}{
		{raftstore.Restrictions{}, ""},
		{raftstore.Restrictions{ClientCA: raftstore.SystemCAs, Clients: []string{"mx.example.net"}}, ""},
		{raftstore.Restrictions{ClientCA: raftstore.SystemCAs, Clients: []string{raftstore.Any}}, ""},
		{raftstore.Restrictions{ClientCA: broken}, "client-ca: expected certificates"},
		{raftstore.Restrictions{ClientCA: broken, Clients: []string{raftstore.Any}}, "client-ca: expected certificates"},
		{raftstore.Restrictions{ClientCA: broken, Clients: []string{"mx.example.net"}}, "client-ca: expected certificates"},
		{raftstore.Restrictions{Clients: []string{"mx.example.net", "a b"}}, "client-name: "},
		{raftstore.Restrictions{Allow: []string{"192.0.2.0/24", "nobody"}}, "allow \"nobody\""},
	} {
		if err := checkRestrictions(tc.Restrictions); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, expected %q", tc.Restrictions, err, tc.want)
		}
	}
}
