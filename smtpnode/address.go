package smtpnode

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/emersion/go-smtp"

	"msgw/internal/lineproto"
)

func bad(format string, args ...any) error {
	return &smtp.SMTPError{Code: 501, EnhancedCode: smtp.EnhancedCode{5, 5, 4}, Message: fmt.Sprintf(format, args...)}
}

// maxAddress is the longest address. RFC 5321 section 4.5.3.1 asks for 256 octets, a
// sub-address for 360 more, and the field of a header that names it may have 998 (RFC 5322
// section 2.1.1).
const maxAddress = 900

// parsePath reads "<path>" and what stands behind it (RFC 5321 section 4.1.2).
// The address is returned as it was written: quotes are kept. A source route is
// dropped (appendix C).
func parsePath(s string) (address, rest string, err error) {
	if !strings.HasPrefix(s, "<") {
		return "", "", bad("expected an address in angle brackets")
	}
	quoted := false
	end := -1
scan:
	for i := 1; i < len(s); i++ {
		switch ch := s[i]; {
		case quoted && ch == '\\':
			i++
		case ch == '"':
			quoted = !quoted
		case quoted:
		case ch == '>':
			end = i
			break scan
		case ch == ' ' || ch == '<':
			return "", "", bad("%q in the address", ch)
		}
	}
	if end < 0 {
		return "", "", bad("address without a closing bracket")
	}
	address, rest = s[1:end], s[end+1:]
	if strings.ContainsFunc(address, unicode.IsControl) {
		return "", "", bad("control character in the address")
	}
	if rest != "" && rest[0] != ' ' {
		return "", "", bad("text behind the address")
	}
	if strings.HasPrefix(address, "@") {
		route, after, ok := strings.Cut(address, ":")
		if !ok {
			return "", "", bad("source route without an address")
		}
		if !ascii(route) || strings.ContainsAny(route, ` "();<>\`) {
			return "", "", bad("not a valid address")
		}
		address = after
	}
	if len(address) > maxAddress {
		return "", "", bad("address longer than %d octets", maxAddress)
	}
	if !utf8.ValidString(address) {
		return "", "", bad("address is not valid UTF-8")
	}
	if address != "" && !validAddress(address) {
		return "", "", bad("not a valid address")
	}
	return address, strings.Trim(rest, " "), nil
}

// validAddress checks the shape local@domain, or local alone.
func validAddress(a string) bool {
	local, domain := splitAddress(a)
	if local == "" || strings.HasSuffix(a, "@") {
		return false
	}
	if strings.HasPrefix(local, `"`) {
		if !quotedString(local) {
			return false
		}
	} else if strings.ContainsAny(local, ` "(),:;<>@[\]`) {
		return false
	}
	return !strings.ContainsAny(domain, ` "(),;<>@\`)
}

// quotedString says whether what begins with a quote is one string in quotes, to its
// end.
func quotedString(s string) bool {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i == len(s)-1
		}
	}
	return false
}

// splitAddress cuts at the last @, but not in a string in quotes that is all there is.
func splitAddress(a string) (local, domain string) {
	if strings.HasPrefix(a, `"`) && quotedString(a) {
		return a, ""
	}
	if i := strings.LastIndexByte(a, '@'); i >= 0 {
		return a[:i], a[i+1:]
	}
	return a, ""
}

// Original returns whom a copy was made for: user@domain, if the address is a sub-address
// mbx-...+user=domain@zone of a mailbox, else the address itself. So senders of plain
// copies, such as Postfix with recipient_bcc_maps, tell an envelope recipient.
func Original(address string) string {
	plain := unquoted(address)
	local, _ := splitAddress(plain)
	_, sub, ok := strings.Cut(local, "+")
	i := strings.LastIndexByte(sub, '=')
	if !ok || i <= 0 || i == len(sub)-1 {
		return address
	}
	user, domain := sub[:i], sub[i+1:]
	if original := user + "@" + domain; validAddress(original) {
		return original
	}
	if original := quote(user) + "@" + domain; plain != address && validAddress(original) {
		return original
	}
	return address
}

// unquoted writes an address whose local part is a quoted string without the quotes, which
// mean nothing (RFC 5321 section 4.1.2). Senders quote what is no dot-string, such as two
// dots in a row.
func unquoted(address string) string {
	local, _ := splitAddress(address)
	if !strings.HasPrefix(local, `"`) || !quotedString(local) || local == address { // without a domain it names nobody
		return address
	}
	var b strings.Builder
	for i := 1; i < len(local)-1; i++ {
		if local[i] == '\\' {
			i++
		}
		b.WriteByte(local[i])
	}
	return b.String() + address[len(local):]
}

// quote writes a local part as a quoted string.
func quote(local string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(local) + `"`
}

// hostName writes what a client calls itself. It may be anything printable; in a header
// field it must be neither a comment, nor quotes, nor octets that are no ASCII.
func hostName(helo string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("-._:[]", r):
			return r
		}
		return '?'
	}, helo)
}

// literal writes an address as in RFC 5321 section 4.1.3.
func literal(a netip.Addr) string {
	if a = a.Unmap().WithZone(""); a.Is4() {
		return "[" + a.String() + "]"
	}
	return "[IPv6:" + a.String() + "]"
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// mailParameters reads the ESMTP parameters of MAIL.
func mailParameters(s string, max int64) (*smtp.MailOptions, error) {
	o := &smtp.MailOptions{}
	for _, f := range words(s) {
		name, value, _ := strings.Cut(f, "=")
		switch lineproto.Upper(name) {
		case "SIZE": // RFC 1870 section 3
			n, err := strconv.ParseUint(value, 10, 63)
			if err != nil && !errors.Is(err, strconv.ErrRange) {
				return nil, bad("SIZE=%.20q: expected a number of octets", value)
			}
			if err != nil || int64(n) > max {
				return nil, errTooLarge
			}
			o.Size = int64(n)
		case "BODY": // RFC 6152 section 3, RFC 3030 section 3
			switch b := smtp.BodyType(lineproto.Upper(value)); b {
			case smtp.Body7Bit, smtp.Body8BitMIME, smtp.BodyBinaryMIME:
				o.Body = b
			default:
				return nil, bad("BODY=%.20q: expected 7BIT, 8BITMIME or BINARYMIME", value)
			}
		case "SMTPUTF8": // RFC 6531 section 3.4
			if value != "" {
				return nil, bad("SMTPUTF8 takes no value")
			}
			o.UTF8 = true
		default:
			return nil, &smtp.SMTPError{Code: 555, EnhancedCode: smtp.EnhancedCode{5, 5, 4}, Message: fmt.Sprintf("parameter %.20q is not known here", name)}
		}
	}
	return o, nil
}

var errTooLarge = &smtp.SMTPError{Code: 552, EnhancedCode: smtp.EnhancedCode{5, 3, 4}, Message: "message is larger than this host takes"}
