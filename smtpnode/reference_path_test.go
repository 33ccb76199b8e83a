package smtpnode

import (
	"regexp"
	"strings"
)

// latin1 makes each octet a rune of its own, so that expressions see octets.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

const (
	quotedLocal = `"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"`
	atomLocal   = `[^\x00-\x20"(),:;<>@\[\\\]\x7f]+`
	domainPart  = `[^\x00-\x20"(),;<>@\\\x7f]+`
	sourceRoute = `@[^\x00-\x20"();<>:\\\x7f-\x{ff}]*:`
)

var (
	pathSyntax = regexp.MustCompile(`(?s)^<(?:` + sourceRoute + `)?((?:(?:` + quotedLocal + `|` + atomLocal + `)(?:@` + domainPart + `)?)?)>( .*)?$`)
	c1Controls = regexp.MustCompile(`\x{c2}[\x{80}-\x{9f}]`) // as UTF-8
)

// path reads "FROM:<address> parameters".
func path(arg, before string) (address string, parameters []string, ok bool) {
	if len(arg) < len(before) || asciiUpper(arg[:len(before)]) != before {
		return "", nil, false
	}
	f := pathSyntax.FindStringSubmatch(latin1(strings.TrimLeft(arg[len(before):], " ")))
	if f == nil {
		return "", nil, false
	}
	address = octetsOf(f[1])
	if c1Controls.MatchString(f[1]) {
		return "", nil, false
	}
	if !strings.Contains(arg, address+">") || strings.ToValidUTF8(address, "") != address || len(address) > 900 {
		return "", nil, false
	}
	for _, p := range strings.Split(octetsOf(f[2]), " ") {
		if p != "" {
			parameters = append(parameters, p)
		}
	}
	return address, parameters, true
}

// octetsOf undoes latin1.
func octetsOf(s string) string {
	var b []byte
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}
