//go:build peers

package resolvers

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"msgw/internal/lab"
	"msgw/test/labtest"
	"msgw/test/peers"
)

// reply is what dig says of an answer.
type reply struct {
	status string
	flags  []string // of the header
	soa    bool     // a SOA in the answer section
	edns   string   // "0", or empty without OPT
	do     bool
	text   string
}

var (
	statusLine = regexp.MustCompile(`->>HEADER<<- opcode: \S+, status: (\w+)`)
	flagsLine  = regexp.MustCompile(`;; flags: ([a-z ]*);( MBZ: \S+;)?`)
	ednsLine   = regexp.MustCompile(`; EDNS: version: (\d+), flags:([a-z ]*);`)
	soaLine    = regexp.MustCompile(`(?m)^\S+\s+\d+\s+IN\s+SOA\s`)
)

func parse(text string) reply {
	r := reply{text: text, soa: soaLine.MatchString(text)}
	if m := statusLine.FindStringSubmatch(text); m != nil {
		r.status = m[1]
	}
	if m := flagsLine.FindStringSubmatch(text); m != nil {
		r.flags = strings.Fields(m[1])
	}
	if m := ednsLine.FindStringSubmatch(text); m != nil {
		r.edns, r.do = m[1], strings.Contains(m[2], "do")
	}
	return r
}

// TestEDNSCompliance asks each site the queries of ISC's DNS compliance tester with
// dig, and expects what RFC 1035 and RFC 6891 want:
// https://ednscomp.isc.org/compliance/tests
func TestEDNSCompliance(t *testing.T) {
	l := peers.Lab(t)
	ednsCompliance(t, l)
	if _, err := signing(t, l, "sign", "on"); err != nil {
		t.Fatal(err)
	}
	ednsCompliance(t, l)
}

func ednsCompliance(t *testing.T, l *labtest.Lab) {
	t.Helper()
	const (
		plain   = iota // NOERROR with the SOA, no OPT
		edns           // NOERROR with the SOA, OPT of version 0
		badvers        // BADVERS without the SOA, OPT of version 0
		nodata         // NOERROR without the SOA in the answer
		notimp         // NOTIMP
	)
	const quiet = "+nocookie +noad +norec "
	for _, c := range []struct {
		name, query string
		want        int
	}{
		{"dns", "+noedns +noad +norec SOA", plain},
		{"aa", "+noedns +noad +norec +aaflag SOA", plain},
		{"ad", "+noedns +norec +ad SOA", plain},
		{"cd", "+noedns +noad +norec +cd SOA", plain},
		{"ra", "+noedns +noad +norec +raflag SOA", plain},
		{"rd", "+noedns +noad +rec SOA", plain},
		{"tc", "+noedns +noad +norec +tcflag SOA", plain},
		{"zflag", "+noedns +noad +norec +zflag SOA", plain},
		{"opcode", "+noedns +noad +norec +header-only +opcode=15", notimp},
		{"type666", "+noedns +noad +norec TYPE666", nodata},
		{"tcp", "+noedns +noad +norec +tcp SOA", plain},
		{"edns", "+edns=0 " + quiet + "SOA", edns},
		{"edns1", "+edns=1 +noednsnegotiation " + quiet + "SOA", badvers},
		{"edns@512", "+edns=0 +bufsize=512 +dnssec +ignore " + quiet + "SOA", edns},
		{"ednsopt", "+edns=0 +ednsopt=100 " + quiet + "SOA", edns},
		{"edns1opt", "+edns=1 +noednsnegotiation +ednsopt=100 " + quiet + "SOA", badvers},
		{"do", "+edns=0 +dnssec " + quiet + "SOA", edns},
		{"docd", "+edns=0 +dnssec +cd " + quiet + "SOA", edns},
		{"edns1do", "+edns=1 +noednsnegotiation +dnssec " + quiet + "SOA", badvers},
		{"ednsflags", "+edns=0 +ednsflags=0x0080 " + quiet + "SOA", edns},
		{"edns1flags", "+edns=1 +noednsnegotiation +ednsflags=0x0080 " + quiet + "SOA", badvers},
		{"optlist", "+edns=0 +nsid +subnet=0.0.0.0/0 +expire +cookie=0102030405060708 +noad +norec SOA", edns},
		{"ednsnsid", "+edns=0 +nsid " + quiet + "SOA", edns},
		{"ednscookie", "+edns=0 +cookie=0102030405060708 +noad +norec SOA", edns},
		{"ednsexpire", "+edns=0 +expire " + quiet + "SOA", edns},
		{"ednssubnet", "+edns=0 +subnet=0.0.0.0/0 " + quiet + "SOA", edns},
		{"edns1nsid", "+edns=1 +noednsnegotiation +nsid " + quiet + "SOA", badvers},
		{"edns1cookie", "+edns=1 +noednsnegotiation +cookie=0102030405060708 +noad +norec SOA", badvers},
		{"edns1expire", "+edns=1 +noednsnegotiation +expire " + quiet + "SOA", badvers},
		{"edns1subnet", "+edns=1 +noednsnegotiation +subnet=0.0.0.0/0 " + quiet + "SOA", badvers},
		{"ednstcp", "+edns=0 +dnssec +tcp " + quiet + "SOA", edns},
	} {
		for _, n := range l.File().Nodes {
			args := append([]string{"@" + n.Addr, "+qr", "+noall", "+comments", "+answer", "+tries=1", "+time=5"}, strings.Fields(c.query)...)
			if c.want != notimp {
				args = append(args, lab.Zone)
			}
			text := base.Output(t, "/usr/bin/dig", args...)
			_, text, _ = strings.Cut(text, ";; Got answer:") // what stands before is the query
			r := parse(text)
			wrong := func(format string, args ...any) {
				t.Errorf("%s at %s: "+format+"\n%s", append(append([]any{c.name, n.Name}, args...), r.text)...)
			}
			status := map[int]string{badvers: "BADVERS", notimp: "NOTIMP"}[c.want]
			if status == "" {
				status = "NOERROR"
			}
			if r.status != status {
				wrong("status %q, expected %s", r.status, status)
			}
			if want := c.want == plain || c.want == edns; r.soa != want {
				wrong("SOA answered %v, expected %v", r.soa, want)
			}
			if want := map[int]string{edns: "0", badvers: "0"}[c.want]; r.edns != want {
				wrong("EDNS version %q, expected %q", r.edns, want)
			}
			if c.want == edns && strings.Contains(c.query, "+dnssec") != r.do {
				wrong("DO is %v", r.do)
			}
			if c.want != notimp {
				if (c.want == plain || c.want == edns) && !slices.Contains(r.flags, "aa") {
					wrong("not authoritative")
				}
				for _, flag := range []string{"ra", "ad", "tc"} {
					if slices.Contains(r.flags, flag) {
						wrong("flag %s", flag)
					}
				}
			}
			if strings.Contains(r.text, "MBZ") {
				wrong("a flag that must be zero is set")
			}
			if (c.name == "ednscookie" || c.name == "optlist") && !strings.Contains(r.text, " (good)") {
				wrong("dig does not take the answer to its cookie for good")
			}
			if strings.Contains(r.text, "OPT=100") {
				wrong("an unknown option is echoed")
			}
		}
	}
}
