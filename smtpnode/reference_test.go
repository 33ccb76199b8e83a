package smtpnode

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
)

// reference is SMTP as this package speaks it, written to be plain: it has all
// that the peer says before it, and no time, network or buffer. It tells which
// replies there have to be and which messages have to be stored.
type reference struct {
	in    []byte
	limit referenceLimits
	// got are the replies of the server. They decide where this model cannot: how far
	// a message beyond the size limit is read depends on what has arrived.
	got []string

	replies []string // code, a space, and the enhanced code
	stored  []letter
	ended   bool

	helo, first  bool
	mail         bool
	from         string
	to           []string
	utf8, binary bool
	trouble      string // a temporary refusal that later ones repeat
	errors, idle int
	named        int    // recipients, refused or not
	pending      []byte // a line that is read again
}

type referenceLimits struct {
	size, errors, idle, recipients int
	tls                            bool
}

var (
	browsing     = regexp.MustCompile(`^(GET|POST|PUT|CONNECT|OPTIONS)$`)
	clientName   = regexp.MustCompile(`(?s)^[^\x00-\x20\x7f]{1,255}( |$)`)
	chunkSyntax  = regexp.MustCompile(`^([0-9]+)(?: +([A-Za-z]+))?$`)
	sizeSyntax   = regexp.MustCompile(`^[0-9]+$`)
	bodySyntax   = regexp.MustCompile(`^(7BIT|8BITMIME|BINARYMIME)$`)
	asciiSyntax  = regexp.MustCompile(`^[\x00-\x7f]*$`)
	binarySyntax = regexp.MustCompile(`^BODY=BINARYMIME$`)
)

// letter is a message with its envelope.
type letter struct{ from, to, data string }

func (m *reference) run() {
	m.first = true
	m.say("220 ")
	for !m.ended {
		if m.errors >= m.limit.errors {
			m.say("421 4.7.0")
			return
		}
		line, ok := m.line()
		if !ok {
			return
		}
		if len(line) > 2048 {
			m.refuse("500 5.5.2")
			continue
		}
		line = chomp(line)
		verb, arg := m.words(line)
		if m.first && browsing.MatchString(verb) || m.first && bytes.HasPrefix(line, []byte("\x16\x03")) {
			return
		}
		m.first = false
		if verb == "RCPT" {
			m.named++
		} else {
			m.idle++
		}
		if m.idle > m.limit.idle || m.named > m.limit.recipients+1000 {
			m.say("421 4.7.0")
			return
		}
		m.command(verb, arg)
	}
}

func (m *reference) say(reply string) { m.replies = append(m.replies, reply) }

// refuse says why not. What is refused for good counts as an error.
func (m *reference) refuse(reply string) {
	m.say(reply)
	if reply[0] == '4' {
		m.trouble = reply
	} else {
		m.errors++
	}
}

func (m *reference) line() ([]byte, bool) {
	if p := m.pending; p != nil {
		m.pending = nil
		return p, true
	}
	i := bytes.IndexByte(m.in, '\n')
	if i < 0 {
		m.ended = true
		return nil, false
	}
	line := m.in[:i+1]
	m.in = m.in[i+1:]
	return line, true
}

// chomp removes LF, or CRLF, from the end.
func chomp(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r"))
}

func asciiUpper(s string) string {
	b := []byte(s)
	for i := range b {
		if 'a' <= b[i] && b[i] <= 'z' {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

func (m *reference) words(line []byte) (verb, arg string) {
	verb, arg, _ = strings.Cut(string(line), " ")
	return asciiUpper(strings.TrimRight(verb, "\t")), strings.Trim(arg, " \t")
}

func (m *reference) reset() {
	m.mail, m.from, m.to, m.utf8, m.binary, m.trouble = false, "", nil, false, false, ""
}

func (m *reference) command(verb, arg string) {
	switch verb {
	case "EHLO", "HELO":
		if !clientName.MatchString(latin1(arg)) {
			m.refuse("501 5.5.4")
			return
		}
		m.reset()
		m.helo = true
		m.say("250 ")
	case "STARTTLS":
		switch {
		case !m.limit.tls:
			m.refuse("502 5.5.1")
		case arg != "":
			m.refuse("501 5.5.4")
		case !m.helo:
			m.refuse("503 5.5.1")
		default:
			m.say("220 2.0.0")
			m.ended = true // nobody here makes a handshake
		}
	case "MAIL":
		m.mailFrom(arg)
	case "RCPT":
		m.rcptTo(arg)
	case "DATA":
		m.data(arg)
	case "BDAT":
		m.bdat(arg)
	case "RSET":
		m.reset()
		m.say("250 2.0.0")
	case "NOOP":
		m.say("250 2.0.0")
	case "VRFY":
		m.say("252 2.5.2")
	case "QUIT":
		m.say("221 2.0.0")
		m.ended = true
	case "AUTH", "EXPN", "HELP", "TURN", "ETRN":
		m.refuse("502 5.5.1")
	default:
		m.refuse("500 5.5.2")
	}
}

// larger says whether digits are a number above n.
func larger(digits string, n int) bool {
	digits = strings.TrimLeft(digits, "0")
	have := strconv.Itoa(n)
	return len(digits) > len(have) || len(digits) == len(have) && digits > have
}

func (m *reference) mailFrom(arg string) {
	switch {
	case !m.helo:
		m.refuse("503 5.5.1")
		return
	case m.mail:
		m.refuse(m.outOfOrder())
		return
	}
	from, parameters, ok := path(arg, "FROM:")
	if !ok {
		m.refuse("501 5.5.4")
		return
	}
	utf8, binary := false, false
	for _, p := range parameters {
		name, value, _ := strings.Cut(p, "=")
		refusal := ""
		switch asciiUpper(name) {
		case "SIZE":
			if !sizeSyntax.MatchString(value) {
				refusal = "501 5.5.4"
			} else if larger(value, m.limit.size) {
				refusal = "552 5.3.4"
			}
		case "BODY":
			if !bodySyntax.MatchString(asciiUpper(value)) {
				refusal = "501 5.5.4"
			}
			binary = binarySyntax.MatchString(asciiUpper(p))
		case "SMTPUTF8":
			utf8 = true
			if value != "" {
				refusal = "501 5.5.4"
			}
		default:
			refusal = "555 5.5.4"
		}
		if refusal != "" {
			m.refuse(refusal)
			return
		}
	}
	if !utf8 && !asciiSyntax.MatchString(latin1(from)) {
		m.refuse("553 5.6.7")
		return
	}
	m.trouble = ""
	if from == "later@x" {
		m.refuse("452 4.3.1")
		return
	}
	m.mail, m.from, m.utf8, m.binary = true, from, utf8, binary
	m.say("250 2.1.0")
}

// outOfOrder is the refusal of a command that does not fit the one before it.
func (m *reference) outOfOrder() string {
	if m.trouble != "" {
		return m.trouble
	}
	return "503 5.5.1"
}

func (m *reference) rcptTo(arg string) {
	if !m.mail {
		m.refuse(m.outOfOrder())
		return
	}
	to, parameters, ok := path(arg, "TO:")
	switch {
	case !ok, to == "":
		m.refuse("501 5.5.4")
	case parameters != nil:
		m.refuse("555 5.5.4")
	case !m.utf8 && !asciiSyntax.MatchString(latin1(to)):
		m.refuse("553 5.6.7")
	case len(m.to) >= m.limit.recipients:
		m.refuse("452 4.5.3")
	case to == "later@x":
		m.refuse("451 4.1.1")
	case to == "nobody@x":
		m.refuse("550 5.1.1")
	default:
		m.to = append(m.to, to)
		m.say("250 2.1.5")
	}
}

// notNow says why no message can follow, or "".
func (m *reference) notNow() string {
	switch {
	case !m.mail:
		return m.outOfOrder()
	case len(m.to) > 0:
		return ""
	case m.trouble != "":
		return m.trouble
	}
	return "554 5.5.1"
}

// mayEnd says whether the server ended the session with the reply before.
func (m *reference) mayEnd() bool { return len(m.got) == len(m.replies) }

func (m *reference) data(arg string) {
	if why := m.notNow(); why != "" {
		m.refuse(why)
		return
	}
	if arg != "" {
		m.refuse("501 5.5.4")
		return
	}
	if m.binary {
		m.refuse("503 5.5.1")
		return
	}
	m.say("354 ")
	msg, rest, whole := dots(m.in)
	m.in = rest
	read := len(msg) // octets that the session left unread
	if m.from != "early@x" {
		read -= m.limit.size
	}
	if read > m.limit.size && m.ends("552 5.3.4") { // beyond all bounds
		return
	}
	if !whole {
		m.ended = true
		return
	}
	m.result(msg)
}

// ends says whether the server said reply and ended the session with it.
func (m *reference) ends(reply string) bool {
	m.say(reply)
	if m.mayEnd() && m.got[len(m.got)-1] == reply {
		m.ended = true
		return true
	}
	m.replies = m.replies[:len(m.replies)-1]
	return false
}

// result answers for a message that came whole.
func (m *reference) result(msg []byte) {
	refusal := ""
	switch {
	case m.from == "early@x", m.from == "late@x" && len(msg) <= m.limit.size:
		refusal = "451 4.3.0"
	case len(msg) > m.limit.size:
		refusal = "552 5.3.4"
	default:
		m.stored = append(m.stored, letter{m.from, strings.Join(m.to, " "), string(msg)})
		m.say("250 2.0.0")
		m.errors, m.idle, m.named = 0, 0, 0
	}
	m.reset()
	if refusal != "" {
		m.refuse(refusal)
	}
}

// dots takes the message from what follows DATA, octet by octet.
func dots(wire []byte) (msg, rest []byte, whole bool) {
	const (
		lineStart = iota
		dot       // that began the line; dropped
		dotCR     // behind it, perhaps of the end
		within
		cr // within, behind a CR
	)
	state := lineStart
	for i, b := range wire {
		switch state {
		case lineStart:
			if b == '.' {
				state = dot
				continue
			}
		case dot:
			if b == '\r' {
				state = dotCR
				continue
			}
		case dotCR:
			if b == '\n' {
				return msg, wire[i+1:], true
			}
			msg = append(msg, '\r') // it was no end
		case cr:
			if b == '\n' {
				msg = append(msg, b)
				state = lineStart
				continue
			}
		}
		if msg = append(msg, b); b == '\r' {
			state = cr
		} else {
			state = within
		}
	}
	if state == dotCR {
		msg = append(msg, '\r')
	}
	return msg, nil, false
}

// chunk reads "size [LAST]".
func chunk(arg string) (size string, last, ok bool) {
	f := chunkSyntax.FindStringSubmatch(arg)
	if f == nil || f[2] != "" && asciiUpper(f[2]) != "LAST" || larger(f[1], 1<<62-1) {
		return "", false, false
	}
	return f[1], f[2] != "", true
}

// take takes the octets of a chunk from what follows it.
func (m *reference) take(size string) ([]byte, bool) {
	n, err := strconv.Atoi(size)
	if err != nil || n > len(m.in) {
		m.ended = true
		return nil, false
	}
	octets := m.in[:n]
	m.in = m.in[n:]
	return octets, true
}

func (m *reference) bdat(arg string) {
	size, last, ok := chunk(arg)
	if !ok {
		m.refuse("501 5.5.4")
		m.ended = true
		return
	}
	if why := m.notNow(); why != "" {
		if larger(size, 2*m.limit.size) {
			m.ended = true
		} else if _, ok := m.take(size); ok {
			m.refuse(why)
		}
		return
	}
	var msg []byte
	for {
		unwanted := m.from == "early@x" || larger(size, m.limit.size-len(msg))
		if unwanted && larger(size, 2*m.limit.size) {
			m.say("552 5.3.4")
			m.ended = true
			return
		}
		octets, ok := m.take(size)
		if !ok {
			return
		}
		msg = append(msg, octets...)
		if last || unwanted {
			m.result(msg)
			return
		}
		m.say("250 2.0.0")
		if size, last, ok = m.nextChunk(); !ok {
			m.reset()
			return
		}
	}
}

// nextChunk reads commands up to the next chunk.
func (m *reference) nextChunk() (size string, last, ok bool) {
	for m.errors < m.limit.errors && m.idle <= m.limit.idle {
		line, ok := m.line()
		if !ok {
			return "", false, false
		}
		if len(line) > 2048 {
			m.refuse("500 5.5.2")
			continue
		}
		switch verb, arg := m.words(chomp(line)); verb {
		case "BDAT":
			size, last, ok := chunk(arg)
			if !ok {
				m.refuse("501 5.5.4")
				m.ended = true
				return "", false, false
			}
			if larger(size, 0) || last {
				return size, last, true
			}
			m.idle++
			m.say("250 2.0.0")
		case "NOOP":
			m.idle++
			m.say("250 2.0.0")
		case "RSET", "QUIT", "EHLO", "HELO", "STARTTLS":
			m.pending = line
			return "", false, false
		default:
			m.refuse("503 5.5.1")
		}
	}
	return "", false, false
}
