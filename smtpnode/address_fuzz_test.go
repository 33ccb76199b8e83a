package smtpnode

import (
	"strings"
	"testing"

	"unicode/utf8"

	"github.com/emersion/go-smtp"
)

// FuzzPath gives parsePath and mailParameters anything, and checks that what they
// accept is what reference accepts, stands in the line as it was written, and holds
// nothing that a header or a log could trip over.
func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"<>", "<a@b>", "<a@b> SIZE=1 BODY=8BITMIME SMTPUTF8", `<"a b@c> \"d\""@e>`, "<@a,@b:c@d>", "<postmaster>", "<a@[IPv6:::1]>",
		`<"a"b"c"@d>`, `<"a"@"b"@c>`, "<a\rb@c>", "<\"\\\x00\"@c>", "<\xff@b>", "<\xc3\xb6@\xc3\xa4>", "<a@b>\tSIZE=1", "<a@b> SIZE=1\rBODY=7BIT",
		"<a@b> SIZE=9223372036854775808", "<a@b> size=+1", "<a@b> \xc5\xbfIZE=1", "<@\xff:a@b>", "<@\"x:\"y@z>", "<@:a>", "<\">\"@b>", `<"a\">`, "<\u0085@b> SMTPUTF8=", "<a\u009f@b> SMTPUTF8", "<\"\u0080\"@b>", "<@a\u0085:b@c>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const max = 1000
		address, rest, err := parsePath(s)
		want, parameters, ok := path("FROM:"+s, "FROM:")
		if strings.HasPrefix(s, " ") { // which is for cutPrefix to take away
			want, ok = "", false
		}
		if (err == nil) != ok || address != want {
			t.Fatalf("%q is %q, %v; expected %q, %v", s, address, err, want, ok)
		}
		if err != nil {
			return
		}
		if !utf8.ValidString(address) || strings.ContainsFunc(address, func(r rune) bool { return r < 0x20 || 0x7f <= r && r < 0xa0 }) {
			t.Fatalf("%q is accepted as %q", s, address)
		}
		if !balanced(address) {
			t.Fatalf("%q has a quote too many", address)
		}
		if !strings.HasSuffix(strings.TrimRight(strings.TrimSuffix(strings.TrimRight(s, " "), rest), " "), address+">") {
			t.Fatalf("%q is accepted as %q, and then %q", s, address, rest)
		}
		if again, rest, err := parsePath("<" + address + ">"); again != address || rest != "" || err != nil {
			t.Fatalf("%q read again is %q, %q, %v", address, again, rest, err)
		}
		o, err := mailParameters(rest, max)
		m := &reference{helo: true, limit: referenceLimits{size: max}}
		m.mailFrom("FROM:<a@b> " + strings.Join(parameters, " "))
		if (err == nil) != (m.replies[0] == "250 2.1.0") {
			t.Fatalf("%q: %v, expected %s", rest, err, m.replies[0])
		}
		if err == nil && (o.Size < 0 || o.Size > max || o.UTF8 != m.utf8 || (o.Body == smtp.BodyBinaryMIME) != m.binary) {
			t.Fatalf("%q: %+v", rest, o)
		}
	})
}

// balanced says whether every quote of an address is closed, and stands around the
// whole local part.
func balanced(address string) bool {
	local := address
	// What ends with a quote is a local part alone: no domain does.
	if i := strings.LastIndex(address, "@"); i >= 0 && !strings.HasSuffix(address, `"`) {
		if local = address[:i]; strings.Contains(address[i:], `"`) {
			return false
		}
	}
	quotes := 0
	for i := 0; i < len(local); i++ {
		switch local[i] {
		case '\\':
			if quotes != 1 || i+1 == len(local)-1 {
				return false
			}
			i++
		case '"':
			if quotes++; quotes == 1 && i != 0 || quotes == 2 && i != len(local)-1 {
				return false
			}
		}
	}
	return quotes == 0 || quotes == 2
}
