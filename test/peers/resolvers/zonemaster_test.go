//go:build peers

package resolvers

import (
	"encoding/json"
	"strings"
	"testing"

	"msgw/internal/lab"
	"msgw/test/peers"
)

// expected are the findings that a lab cannot be without, as tag and address.
var expected = map[string]string{
	"NAMESERVER_IP_PRIVATE_NETWORK": "127.", // a lab's addresses are loopback
	"NAMESERVER_IP_WITHOUT_REVERSE": "127.", // nobody delegates their reverse zone
}

// TestZonemaster lets zonemaster test the zone, found by itself from the root down.
// Whatever it warns of must be expected.
func TestZonemaster(t *testing.T) {
	l := peers.Lab(t)
	peers.ServeTree(t, base, l.File())
	zonemaster(t, []string{"DELEGATION01", "NAMESERVER02", "CONSISTENCY01", "ZONE09", "BASIC02"}, expected)
}

// zonemaster runs zonemaster and fails the test on every warning that is not expected, and
// if one of cases was not tested.
func zonemaster(t *testing.T, cases []string, expected map[string]string) {
	t.Helper()
	base.Write(t, "/srv/hints", peers.RootHints(), 0o644)
	out, err := base.Command(t.Context(), "/usr/bin/zonemaster-cli", "--hints", "/srv/hints", "--no-ipv6", "--no-progress",
		"--json", "--level", "DEBUG", lab.Zone).Output()
	if err != nil {
		t.Fatalf("zonemaster-cli: %v\n%s", err, out)
	}
	var findings []struct {
		Level, Tag, Testcase string
		Args                 map[string]any
	}
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	tested, levels := map[string]bool{}, map[string]int{}
	for _, f := range findings {
		tested[f.Testcase] = true
		levels[f.Level]++
		switch f.Level {
		case "WARNING", "ERROR", "CRITICAL":
			prefix, ok := expected[f.Tag]
			if ip, _ := f.Args["ns_ip"].(string); !ok || !strings.HasPrefix(ip, prefix) {
				t.Errorf("%s %s: %v", f.Level, f.Tag, f.Args)
			}
		}
	}
	t.Logf("findings by level: %v, of %d test cases", levels, len(tested))
	for _, name := range cases {
		if !tested[name] && !tested[strings.ToLower(name)] {
			t.Errorf("%s was not tested", name)
		}
	}
}
