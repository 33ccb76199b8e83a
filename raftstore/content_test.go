package raftstore

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// twoSites is a configuration of a zone with two sites, one with its host name outside.
func twoSites() *State {
	return &State{Cluster: "c", Zone: Zone{Name: "msgw.example.com", MXMode: "tier"}, Mailboxes: map[string]Mailbox{}, Invites: map[string]Invite{},
		Nodes: map[string]Node{
			"msgw1": {Name: "msgw1", ID: "1", Role: Site, Host: "msgw1.msgw.example.com", Peer: "192.0.2.1:8451", V4: []string{"192.0.2.1"}},
			"msgw2": {Name: "msgw2", ID: "2", Role: Site, Host: "mx2.example.net", Peer: "198.51.100.1:8451", V4: []string{"198.51.100.1"}},
			"wit":   {Name: "wit", ID: "3", Role: Witness, Peer: "203.0.113.1:8451"},
		}}
}

// try applies a change to a copy of s and returns it, and what the rejection says.
func try(s *State, ch Change) (*State, string) {
	next := s.clone()
	if out := next.outcome(newCommand("msgw1", ch, time.Now()), ch, 1); out.Rejection != nil {
		return s, out.Rejection.Code + ": " + out.Rejection.Message
	}
	return next, ""
}

func TestSetContent(t *testing.T) {
	t.Parallel()
	s, why := try(twoSites(), SetContent{Content: Content{Apex: []string{ApexSites}}})
	if why != "" || s.Content.Version != 1 {
		t.Fatalf("%s, version %d", why, s.Content.Version)
	}
	if _, why := try(s, SetContent{}); !strings.HasPrefix(why, "conflict") {
		t.Errorf("a change from an older version: %q", why)
	}
	if s, why = try(s, SetContent{Version: 1}); why != "" || len(s.Content.Apex) > 0 || s.Content.Version != 2 {
		t.Errorf("%s, %+v", why, s.Content)
	}
}

func TestContentChecks(t *testing.T) {
	t.Parallel()
	many := func(n int, format string) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf(format, i))
		}
		return out
	}
	ns := func(list ...NameServer) Content { return Content{NameServers: list} }
	ex := func(e ...Exchange) Content { return Content{Exchanges: e} }
	caa := func(c CAA) Content { return Content{CAA: c} }
	le := []string{"letsencrypt.org"}
	for name, tc := range map[string]struct {
		content Content
		want    string // within the rejection; empty: accepted
	}{
		"nothing":                  {Content{}, ""},
		"name servers":             {ns(NameServer{Name: "ns1.example.com"}, NameServer{"ns2.msgw.example.com", "msgw2"}, NameServer{Name: "msgw1.msgw.example.com"}), ""},
		"one twice":                {ns(NameServer{Name: "ns1.example.com"}, NameServer{Name: "ns1.example.com"}), "named twice"},
		"one twice, with a site":   {ns(NameServer{"ns1.msgw.example.com", "msgw1"}, NameServer{"ns1.msgw.example.com", "msgw2"}), "named twice"},
		"a site's host with one":   {ns(NameServer{"msgw1.msgw.example.com", "msgw1"}), "expected no site"},
		"a witness's addresses":    {ns(NameServer{"ns1.msgw.example.com", "wit"}), "no site is named wit"},
		"no host name":             {ns(NameServer{Name: "NS1.example.com"}), "expected a full host name in lower case"},
		"the zone as name server":  {ns(NameServer{"msgw.example.com", "msgw1"}), "it is the zone itself"},
		"too many name servers":    {ns(make([]NameServer, 14)...), "name servers: 14, expected at most 13"},
		"apex":                     {Content{Apex: []string{"192.0.2.1", "2001:db8::1"}}, ""},
		"apex, sites and more":     {Content{Apex: []string{ApexSites, "192.0.2.1"}}, `apex: "sites"`},
		"apex, another spelling":   {Content{Apex: []string{"2001:DB8::1"}}, "expected an address"},
		"apex, mapped":             {Content{Apex: []string{"::ffff:192.0.2.1"}}, "expected an address"},
		"apex, nobody":             {Content{Apex: []string{"0.0.0.0"}}, "expected an address"},
		"caa":                      {caa(CAA{Issue: []string{CAAuto, "example.net"}, DenyWildcards: true, Iodef: "https://example.com/report", Accounts: true}), ""},
		"caa, no domain":           {caa(CAA{Issue: []string{"letsencrypt.org; x"}}), "expected the domain of a CA"},
		"caa, one twice":           {caa(CAA{Issue: []string{"letsencrypt.org", "letsencrypt.org"}}), "named twice"},
		"caa, of nothing":          {caa(CAA{DenyWildcards: true}), "while it is off"},
		"caa, accounts of nobody":  {caa(CAA{Issue: le, Accounts: true}), "expected caa auto"},
		"caa, quoted":              {caa(CAA{Issue: le, Iodef: `mailto:"a"@example.com`}), "caa-iodef"},
		"reports":                  {Content{TLSReports: []string{"mailto:tls@example.com", "https://example.com/tls"}}, ""},
		"reports, a list":          {Content{TLSReports: []string{"mailto:tls@example.com,mailto:x@example.com"}}, "tls-reports"},
		"reports, one twice":       {Content{TLSReports: []string{"mailto:tls@example.com", "mailto:tls@example.com"}}, "named twice"},
		"reports, no domain":       {Content{TLSReports: []string{"mailto:tls"}}, "tls-reports"},
		"reports, by http":         {Content{TLSReports: []string{"http://example.com/"}}, "tls-reports"},
		"mta-sts":                  {Content{MTASTS: MTASTS{STSEnforce, 86400}}, ""},
		"mta-sts, no mode":         {Content{MTASTS: MTASTS{Mode: "off"}}, "expected off, none, testing or enforce"},
		"mta-sts, too long":        {Content{MTASTS: MTASTS{STSTesting, 31557601}}, "mta-sts-max-age"},
		"mta-sts, too short":       {Content{MTASTS: MTASTS{STSTesting, 299}}, "mta-sts-max-age"},
		"mta-sts, its name taken":  {Content{MTASTS: MTASTS{Mode: STSTesting}, Records: []string{"mta-sts.msgw.example.com.\t3600\tIN\tA\t192.0.2.9"}}, "part of MTA-STS"},
		"its name without it":      {Content{Records: []string{"mta-sts.msgw.example.com.\t3600\tIN\tA\t192.0.2.9"}}, ""},
		"enforce and an exchange":  {Content{MTASTS: MTASTS{Mode: STSEnforce}, Exchanges: []Exchange{{Host: "old.example.com"}}}, "old.example.com is no node"},
		"exchanges":                {ex(Exchange{Host: "old.example.com", Weight: 1000}, Exchange{Host: "old.msgw.example.com", Addresses: []string{"192.0.2.7"}, Port: 2525}), ""},
		"exchange, a site":         {ex(Exchange{Host: "mx2.example.net"}), "the host name of msgw2"},
		"exchange twice":           {ex(Exchange{Host: "old.example.com"}, Exchange{Host: "old.example.com"}), "it is an exchange"},
		"exchange without address": {ex(Exchange{Host: "old.msgw.example.com"}), "no address"},
		"exchange, weight":         {ex(Exchange{Host: "old.example.com", Weight: 1001}), "weight 1001"},
		"exchange, port":           {ex(Exchange{Host: "old.example.com", Port: 65536}), "port 65536"},
		"exchange, too many":       {ex(Exchange{Host: "old.example.com", Addresses: many(9, "192.0.2.1%d")}), "9 addresses"},
		"the zone as an exchange":  {ex(Exchange{Host: "msgw.example.com", Addresses: []string{"192.0.2.7"}}), "the zone itself"},
		"too many records":         {Content{Records: many(101, "x%d.msgw.example.com.\t3600\tIN\tA\t192.0.2.80")}, "records: 101"},
		"many records":             {Content{Records: many(100, "x%d.msgw.example.com.\t3600\tIN\tA\t192.0.2.80")}, ""},
	} {
		_, why := try(twoSites(), SetContent{Content: tc.content})
		if (tc.want == "") != (why == "") || !strings.Contains(why, tc.want) {
			t.Errorf("%s: %q, want %q", name, why, tc.want)
		}
	}
}

func TestRecords(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		records string // separated by |
		want    string
	}{
		{"www A 192.0.2.80|www AAAA 2001:db8::80", ""},
		{`@ 60 IN TXT "v=spf1 -all"|@ TXT b`, ""},
		{"msgw1 TXT x|msgw1 CAA 0 issue example.net", ""},
		{"sub NS ns.example.net.|sub DS 1 13 2 " + strings.Repeat("ab", 32) + "|ns.sub A 192.0.2.5|sub NS ns.sub", ""},
		{"_25._tcp.msgw1 TLSA 3 1 1 " + strings.Repeat("ab", 32), ""},
		{"a CNAME b", ""},
		{"svc SRV 1 2 3 msgw1|w HTTPS 1 . alpn=h2", ""},
		{"a CNAME b|a CNAME c", "alone at its name"},
		{"a A 192.0.2.1|a CNAME b", "alone at its name"},
		{"www A 192.0.2.80|www 5 A 192.0.2.80", "exists: "},
		{"sub DS 1 13 2 " + strings.Repeat("ab", 32), "add its NS records first"},
		{"sub NS ns.example.net.|x.sub TXT y", "hidden by the delegation of sub.msgw.example.com."},
		{"sub NS ns.example.net.|sub TXT y", "hidden by the delegation"},
		{"sub NS ns.example.net.|x.sub NS y", "hidden by the delegation"},
		{"msgw1 NS ns.example.net.", "the host name of msgw1"},
		{"_tcp.msgw1 NS ns.example.net.", ""},
		{"msgw1 AAAA 2001:db8::1", "the host name of msgw1"},
		{"_acme-challenge.msgw1 TXT x", "where the certificate of msgw1 is proven"},
		{"x._acme-challenge.msgw1 A 192.0.2.1", "where the certificate of msgw1 is proven"},
		{"@ CNAME example.net.", "cannot be an alias"},
		{"@ A 192.0.2.1", "msgw dns set --apex"},
		{"@ CAA 0 issue example.net", "msgw dns set --caa"},
		{"@ NS ns.example.net.", "MX and NS of the zone follow"},
		{"@ DS 1 13 2 " + strings.Repeat("ab", 32), "belongs into the parent zone"},
		{"x SOA a b 1 2 3 4 5", "cannot be added"},
		{"x DNAME example.net.", "cannot be added"},
		{"x RRSIG A 13 4 60 20300101000000 20200101000000 1 x. AAAA", "cannot be added"},
		{"x TYPE65280 \\# 1 00", "cannot be added"},
		{"x CH TXT y", "class is not IN"},
		{"*.x A 192.0.2.1", "no wildcards"},
		{`x\046y A 192.0.2.1`, "other characters"},
		{"example.com. A 192.0.2.1", "outside of"},
		{"x 604801 A 192.0.2.1", "TTL of 604801"},
		{"x TXT " + strings.Repeat(strings.Repeat("y", 200)+" ", 6), "expected at most 1024"},
		{"x TXT " + strings.Repeat("y", 4100), "expected at most 4096"},
		{"x A 192.0.2.1\ny A 192.0.2.1", "more than one record"},
		{"x A 192.0.2.1\n$TTL x", "more than one record"},
		{"$GENERATE 1-9 x$ A 192.0.2.1", "not a directive"},
		{"$INCLUDE /etc/passwd", "not a directive"},
		{"x A 192.0.2.300", "does not parse"},
		{"; nothing", "no record"},
		{"", "no record"},
	} {
		var c Content
		why := ""
		for text := range strings.SplitSeq(tc.records, "|") {
			_, canonical, err := ParseRecord("msgw.example.com", text)
			if err != nil {
				why = err.Error()
			}
			c.Records = append(c.Records, canonical)
		}
		if why == "" {
			_, why = try(twoSites(), SetContent{Content: c})
		}
		if (tc.want == "") != (why == "") || !strings.Contains(why, tc.want) {
			t.Errorf("%.80q: %q, want %q", tc.records, why, tc.want)
		}
	}
	if _, why := try(twoSites(), SetContent{Content: Content{Records: []string{"www.msgw.example.com. 3600 IN A 192.0.2.80"}}}); !strings.Contains(why, "expected it as") {
		t.Errorf("another spelling: %q", why)
	}
	tlsa := Content{TLSA: true, Records: []string{"_tcp.msgw1.msgw.example.com.\t3600\tIN\tNS\tns.example.net."}}
	if _, why := try(twoSites(), SetContent{Content: tlsa}); !strings.Contains(why, "delegate _25._tcp.msgw1.msgw.example.com. away") {
		t.Errorf("TLSA records delegated away: %q", why)
	}
}

// A configuration without content is written as before, and one with content is read with it.
func TestContentIsKept(t *testing.T) {
	t.Parallel()
	s := twoSites()
	s.Format, s.Epoch, s.CA = stateFormat, Epoch{1, "e"}, CA{Certificate: "c", Key: []byte("k")}
	b, err := json.Marshal(s)
	if err != nil || strings.Contains(string(b), `"content"`) {
		t.Errorf("%v, %s", err, b)
	}
	s.Content = Content{Version: 3, CAA: CAA{Issue: []string{CAAuto}}, Records: []string{"www.msgw.example.com.\t3600\tIN\tA\t192.0.2.80"},
		Exchanges: []Exchange{{Host: "old.example.com", Weight: 2}}, NameServers: []NameServer{{Name: "ns1.example.com"}}}
	for _, want := range []string{"", "content: apex"} {
		if want != "" {
			s.Content.Apex = []string{"nowhere"}
		}
		if b, err = json.Marshal(s); err != nil {
			t.Fatal(err)
		}
		switch back, err := DecodeState(b); {
		case (err == nil) != (want == ""), err != nil && !strings.Contains(err.Error(), want):
			t.Errorf("%v, want %q", err, want)
		case err == nil && !reflect.DeepEqual(back.Content, s.Content):
			t.Errorf("%+v", back.Content)
		}
	}
}

// A node that would not fit beside the content is not taken in, nor changed to that.
func TestContentAndNodes(t *testing.T) {
	t.Parallel()
	s, why := try(twoSites(), SetContent{Content: Content{Records: []string{"www.msgw.example.com.\t3600\tIN\tA\t192.0.2.80"},
		NameServers: []NameServer{{"ns.msgw.example.com", "msgw2"}}, Exchanges: []Exchange{{Host: "old.example.com"}}}})
	if why != "" {
		t.Fatal(why)
	}
	for host, want := range map[string]string{"www.msgw.example.com": "its name is the host name of msgw1", "old.example.com": "it is the host name of msgw1",
		"ns.msgw.example.com": "it is the host name of a site", "mx1.example.com": ""} {
		n := s.Nodes["msgw1"]
		n.Host = host
		if _, why := try(s, UpdateNode{Node: n}); (want == "") != (why == "") || !strings.Contains(why, want) {
			t.Errorf("%s: %q, want %q", host, why, want)
		}
	}
	// A new machine in the place of a site has its host name, whatever its own file says.
	listed, why := try(s, SetContent{Version: 1, Content: Content{NameServers: []NameServer{{Name: "msgw1.msgw.example.com"}}}})
	if why != "" {
		t.Fatal(why)
	}
	listed, _ = try(listed, AddInvite{Invite: Invite{ID: "i", Role: Site, Expires: time.Now().Add(time.Hour), Replaces: "msgw1", ReplacesID: "1"}})
	other := Node{Name: "msgw1", ID: "9", Role: Site, Host: "new.msgw.example.com", Peer: "192.0.2.9:8451", V4: []string{"192.0.2.9"}}
	if _, why := try(listed, JoinNode{Invite: "i", Node: other, CA: CA{SealedTo: []string{"msgw1", "msgw2"}}}); why != "" {
		t.Errorf("a name server's machine is replaced: %q", why)
	}
	if _, why := try(s, LeaveNode{Name: "msgw2", ID: "2"}); !strings.Contains(why, "ns.msgw.example.com is a name server of the zone with the addresses of msgw2") {
		t.Errorf("the site of a name server leaves: %q", why)
	}
	if s, why = try(s, SetContent{Version: 1, Content: Content{NameServers: []NameServer{{Name: "mx2.example.net"}}}}); why != "" {
		t.Fatal(why)
	}
	if _, why := try(s, LeaveNode{Name: "msgw2", ID: "2"}); !strings.Contains(why, "mx2.example.net is a name server") {
		t.Errorf("a name server leaves: %q", why)
	}
	if s, why = try(s, SetContent{Version: 2}); why != "" {
		t.Fatal(why)
	}
	if s, why = try(s, LeaveNode{Name: "msgw2", ID: "2"}); why != "" {
		t.Fatal(why)
	}
	if _, why := try(s, SetContent{Version: 3, Content: Content{NameServers: []NameServer{{"ns.msgw.example.com", "msgw2"}}}}); !strings.Contains(why, "no site is named msgw2") {
		t.Errorf("a name server at a site that leaves: %q", why)
	}
}
