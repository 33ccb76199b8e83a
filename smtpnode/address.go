package smtpnode

import (
	"errors"
	"fmt"
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

// splitAddress cuts at the last @.
func splitAddress(a string) (local, domain string) {
	if i := strings.LastIndexByte(a, '@'); i >= 0 {
		return a[:i], a[i+1:]
	}
	return a, ""
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
