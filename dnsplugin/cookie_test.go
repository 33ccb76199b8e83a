package dnsplugin

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func secret(t *testing.T, s string) CookieSecret {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(CookieSecret{}) {
		t.Fatal(s, err)
	}
	return CookieSecret(b)
}

func withCookie(cookie string) *dns.Msg {
	q := question("gw.example.org.", "MX")
	q.SetEdns0(1232, false)
	o := q.IsEdns0()
	o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie})
	return q
}

// The examples of RFC 9018 appendix A.
func TestCookieVectors(t *testing.T) {
	t.Parallel()
	old, other := secret(t, "e5e973e5a6b2a43f48e7dc849e37bfcf"), secret(t, "dd3bdf9344b678b185a6f5cb60fca715")
	roll := []CookieSecret{secret(t, "445536bcd2513298075a5d379663c962"), other}
	for name, tc := range map[string]struct {
		asked, client string
		secrets       []CookieSecret
		now           int64
		valid         bool
		reply         string
	}{
		"A.1":                            {"2464c4abcf10c957", "198.51.100.100", []CookieSecret{old}, 1559731985, false, "2464c4abcf10c957010000005cf79f111f8130c3eee29480"},
		"A.2":                            {"2464c4abcf10c957010000005cf79f111f8130c3eee29480", "198.51.100.100", []CookieSecret{old}, 1559734385, true, "2464c4abcf10c957010000005cf7a871d4a564a1442aca77"},
		"A.3, which has reserved octets": {"fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", "203.0.113.203", []CookieSecret{old}, 1559727985, true, "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5"},
		"A.3, too old":                   {"fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5", "203.0.113.203", []CookieSecret{old}, 1559734700, false, "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e"},
		"A.4":                            {"22681ab97d52c298010000005cf7c57926556bd0934c72f8", "2001:db8:220:1:59de:d0f4:8769:82b8", roll, 1559741961, true, "22681ab97d52c298010000005cf7c609a6bb79d16625507a"},
	} {
		c := readCookie(withCookie(tc.asked), netip.MustParseAddr(tc.client), tc.secrets, time.Unix(tc.now, 0))
		if c.valid != tc.valid || c.reply != tc.reply {
			t.Errorf("%s: %+v, want valid %v, %s", name, c, tc.valid, tc.reply)
		}
	}
}

func TestCookies(t *testing.T) {
	t.Parallel()
	mine, before := CookieSecret{1}, CookieSecret{2}
	secrets := []CookieSecret{mine, before}
	now, client := time.Unix(1800000000, 0), netip.MustParseAddr("192.0.2.1")
	made := func(s CookieSecret, at time.Time, a netip.Addr) string {
		return hex.EncodeToString(s.make([]byte("abcdefgh"), a, at))
	}
	for name, tc := range map[string]struct {
		asked            string
		valid, malformed bool
		same             bool // the answer is what was asked with
	}{
		"client only":          {asked: "0123456789abcdef"},
		"short":                {asked: "0123456789abcd", malformed: true},
		"between":              {asked: strings.Repeat("ab", 15), malformed: true},
		"long":                 {asked: strings.Repeat("ab", 41), malformed: true},
		"of others":            {asked: strings.Repeat("ab", 40)},
		"fresh":                {asked: made(mine, now, client), valid: true, same: true},
		"half used up":         {asked: made(mine, now.Add(-31*time.Minute), client), valid: true},
		"old":                  {asked: made(mine, now.Add(-61*time.Minute), client)},
		"a little ahead":       {asked: made(mine, now.Add(4*time.Minute), client), valid: true, same: true},
		"far ahead":            {asked: made(mine, now.Add(6*time.Minute), client)},
		"by the secret before": {asked: made(before, now, client), valid: true},
		"by another":           {asked: made(CookieSecret{3}, now, client)},
		"of another":           {asked: made(mine, now, netip.MustParseAddr("192.0.2.2"))},
	} {
		c := readCookie(withCookie(tc.asked), client, secrets, now)
		if c.valid != tc.valid || c.malformed != tc.malformed || (c.reply == tc.asked) != tc.same {
			t.Errorf("%s: %+v", name, c)
		}
		if again := readCookie(withCookie(c.reply), client, secrets, now); !tc.malformed && !again.valid {
			t.Errorf("%s: the cookie given is not accepted", name)
		}
	}
	if c := readCookie(question("gw.example.org.", "MX"), client, secrets, now); c != (cookie{}) {
		t.Errorf("without EDNS: %+v", c)
	}
	if c := readCookie(withCookie("0123456789abcdef"), client, nil, now); c != (cookie{}) {
		t.Errorf("without secrets: %+v", c)
	}
}
