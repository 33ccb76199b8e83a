package dnsplugin_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"msgw/dnsplugin"

	"github.com/miekg/dns"
)

// current is the version of the zone that is served.
type current struct{ atomic.Pointer[dnsplugin.Zone] }

func (c *current) Zone() *dnsplugin.Zone { return c.Load() }

func Example() {
	zone := &current{}
	zone.Store(&dnsplugin.Zone{
		Name:   "gw.example.org.",
		Serial: 1,
		Hosts: []dnsplugin.Host{
			{Name: "gw1.gw.example.org.", V4: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Weight: 1, NameServer: true},
			{Name: "gw2.gw.example.org.", V4: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Weight: 1, NameServer: true, State: dnsplugin.Down},
		},
	})
	handler, err := dnsplugin.New(dnsplugin.Options{Source: zone, Log: slog.Default()})
	if err != nil {
		panic(err)
	}
	server := dnsplugin.NewServer(handler, "127.0.0.1:0")
	if err := server.Listen(context.Background()); err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- server.Serve(ctx) }()

	answer, err := dns.Exchange(new(dns.Msg).SetQuestion("gw.example.org.", dns.TypeMX), server.Addr()[0].String())
	if err != nil {
		panic(err)
	}
	for _, rr := range answer.Answer {
		fmt.Println(strings.ReplaceAll(rr.String(), "\t", " "))
	}
	stop()
	if err := <-done; err != nil {
		panic(err)
	}
	// Output:
	// gw.example.org. 60 IN MX 10 gw1.gw.example.org.
	// gw.example.org. 60 IN MX 100 gw2.gw.example.org.
}

func ExampleZone_Shares() {
	zone := &dnsplugin.Zone{
		Name: "gw.example.org.",
		Hosts: []dnsplugin.Host{
			{Name: "gw1.gw.example.org.", V4: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Weight: 3},
			{Name: "gw2.gw.example.org.", V4: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Weight: 1},
		},
	}
	for _, s := range zone.Shares() {
		fmt.Printf("%s %s %.0f%% TTL %d: %s\n", s.Host, s.Class, 100*s.Expected, s.TTL, s.Why)
	}
	for _, x := range zone.Draw(rand.New(rand.NewPCG(1, 1))) {
		fmt.Println("MX", x.Preference, x.Host)
	}
	// Output:
	// gw1.gw.example.org. preferred 75% TTL 60: up, weight 3 of 4
	// gw2.gw.example.org. preferred 25% TTL 60: up, weight 1 of 4
	// MX 10 gw1.gw.example.org.
	// MX 20 gw2.gw.example.org.
}

// The Go code in the README is that of the examples above.
func TestReadmeExamples(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	flat := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	blocks := strings.Split(string(readme), "~~~ go\n")[1:]
	if len(blocks) < 2 {
		t.Fatalf("%d blocks of Go in the README", len(blocks))
	}
	for _, b := range blocks {
		b, _, _ = strings.Cut(b, "~~~")
		for part := range strings.SplitSeq(b, "\n...\n") {
			if !strings.Contains(flat(string(code)), flat(part)) {
				t.Errorf("not in an example that runs:\n%s", part)
			}
		}
	}
}
