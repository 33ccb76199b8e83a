package pop3d

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// reference is POP3 as this package speaks it, written to be plain. It reads what
// the client said and, in step with it, what the server answered.
type reference struct {
	t      *testing.T
	in     []byte
	out    string
	secure bool
	drop   *maildrop

	user      string
	loggedIn  bool
	marked    map[int]bool
	bad       int
	failed    int // logins
	commands  int
	ended     bool
	deletes   [][]int
	handshake bool // the server awaited one
}

func (m *reference) run() {
	m.marked = map[int]bool{}
	m.expect("+OK")
	for !m.ended {
		line, ok := m.line()
		if !ok {
			break
		}
		m.command(line)
	}
	if m.handshake && strings.HasPrefix(m.out, "\x15\x03") {
		return // its alert
	}
	if m.out != "" {
		m.t.Fatalf("and then %q", m.out)
	}
}

// line returns the next line of the client, or "too long".
func (m *reference) line() (string, bool) {
	i := bytes.IndexByte(m.in, '\n')
	if i < 0 {
		m.ended = true
		return "", false
	}
	line := m.in[:i+1]
	m.in = m.in[i+1:]
	if len(line) > 1026 {
		return strings.Repeat("x", 2000), true
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r"), true
}

// expect takes one line of the server, which has to begin so.
func (m *reference) expect(prefix string) {
	m.t.Helper()
	line, rest, ok := strings.Cut(m.out, "\r\n")
	if !ok || !strings.HasPrefix(line, prefix) {
		m.t.Fatalf("got %.80q, expected %s", m.out, prefix)
	}
	m.out = rest
}

// body takes the lines of a response as they are on the wire.
func (m *reference) body(want string) {
	m.t.Helper()
	rest, ok := strings.CutPrefix(m.out, want+".\r\n")
	if !ok {
		m.t.Fatalf("got %.200q, expected %q and the final dot", m.out, want)
	}
	m.out = rest
}

// refuse is for an answer that counts as an error.
func (m *reference) refuse() {
	m.t.Helper()
	m.expect("-ERR ")
	m.bad++
	m.ended = m.bad == 10
}

var (
	httpMethods   = regexp.MustCompile(`^(GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PRI)$`)
	withoutArg    = regexp.MustCompile(`^(CAPA|QUIT|STLS|STAT|RSET|NOOP)$`)
	transactional = regexp.MustCompile(`^(STAT|LIST|UIDL|RETR|TOP|DELE|RSET|NOOP)$`)
	plainName     = regexp.MustCompile(`^(?i:PLAIN)$`)
	digits        = regexp.MustCompile(`^[0-9]+$`)
)

func (m *reference) command(line string) {
	verb, arg, hasArg := strings.Cut(line, " ")
	b := []byte(verb)
	for i := range b {
		if 'a' <= b[i] && b[i] <= 'z' {
			b[i] -= 32
		}
	}
	verb = string(b)
	m.commands++
	trimmed := strings.Trim(arg, " ")
	switch {
	case len(line) > 255 && verb != "AUTH", len(line) > 1024:
		m.refuse()
	case m.commands == 1 && httpMethods.MatchString(verb):
		m.ended = true
	case verb == "PASS":
		m.pass(arg, hasArg)
	case verb == "USER":
		if !m.secure || m.loggedIn || trimmed == "" {
			m.refuse()
			return
		}
		m.user = trimmed
		m.expect("+OK")
	case verb == "AUTH":
		m.auth(trimmed)
	case withoutArg.MatchString(verb) && trimmed != "":
		m.refuse()
	case verb == "CAPA":
		m.expect("+OK")
		i := strings.Index(m.out, "\r\n.\r\n")
		if i < 0 || strings.Contains(m.out[:i], "STLS") == m.secure {
			m.t.Fatalf("capabilities %.200q", m.out)
		}
		m.out = m.out[i+5:]
	case verb == "QUIT":
		m.expect("+OK")
		m.ended = true
		var which []int
		for i := range m.drop.list {
			if m.marked[i] {
				which = append(which, i)
			}
		}
		if which != nil {
			m.deletes = [][]int{which}
		}
	case verb == "STLS":
		m.stls()
	case !transactional.MatchString(verb), !m.loggedIn:
		m.refuse()
	default:
		m.transaction(verb, trimmed)
	}
}

func (m *reference) stls() {
	if m.secure {
		m.refuse()
		return
	}
	// Whether what follows is here already depends on the network.
	if m.ended = true; strings.HasPrefix(m.out, "-ERR ") {
		m.expect("-ERR nothing may follow")
		return
	}
	m.expect("+OK")
	m.handshake = true
}

func (m *reference) pass(arg string, hasArg bool) {
	if !hasArg || !m.secure || m.loggedIn {
		m.refuse()
		return
	}
	user := m.user
	m.user = ""
	if user == "" || arg == "" {
		m.refuse()
		return
	}
	m.login(user, arg)
}

func (m *reference) auth(arg string) {
	if !m.secure || m.loggedIn {
		m.refuse()
		return
	}
	mechanism, response, has := strings.Cut(arg, " ")
	if !plainName.MatchString(mechanism) {
		m.refuse()
		return
	}
	if !has {
		m.expect("+ ")
		var ok bool
		if response, ok = m.line(); !ok {
			return
		}
		if len(response) > 1024 || response == "*" {
			m.refuse()
			return
		}
	} else if response == "=" {
		response = ""
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(response)
	f := strings.Split(string(raw), "\x00")
	if err != nil || len(f) != 3 || f[1] == "" || f[2] == "" || f[0] != "" && f[0] != f[1] {
		m.refuse()
		return
	}
	m.login(f[1], f[2])
}

func (m *reference) login(user, password string) {
	switch {
	case password == "no":
		m.expect("-ERR [AUTH] ")
	case user == "busy":
		m.expect("-ERR [IN-USE] ")
	case user == "broken":
		m.expect("-ERR [SYS/TEMP] ")
	default:
		m.expect("+OK")
		m.loggedIn = true
		return
	}
	m.failed++
	m.ended = m.failed == 3
}

func (m *reference) transaction(verb, arg string) {
	count, octets := 0, int64(0)
	list := ""
	for i, msg := range m.drop.list {
		if m.marked[i] && verb != "RSET" {
			continue
		}
		count++
		octets += msg.Octets
		if verb == "LIST" {
			list += fmt.Sprintf("%d %d\r\n", i+1, msg.Octets)
		} else {
			list += fmt.Sprintf("%d %s\r\n", i+1, msg.ID)
		}
	}
	switch {
	case verb == "NOOP":
		m.expect("+OK")
		return
	case verb == "RSET":
		m.marked = map[int]bool{}
		fallthrough
	case verb == "STAT":
		m.expect(fmt.Sprintf("+OK %d %d", count, octets))
		return
	case (verb == "LIST" || verb == "UIDL") && arg == "":
		m.expect(fmt.Sprintf("+OK %d ", count))
		m.body(list)
		return
	}
	number, lines, has := strings.Cut(arg, " ")
	n, err := strconv.ParseInt(number, 10, 32)
	if !digits.MatchString(number) || err != nil {
		m.refuse()
		return
	}
	most, err := strconv.ParseInt(lines, 10, 64)
	if verb == "TOP" && (!digits.MatchString(lines) || err != nil) || verb != "TOP" && has {
		m.refuse()
		return
	}
	i := int(n) - 1
	if i < 0 || i >= len(m.drop.list) || m.marked[i] {
		m.expect("-ERR no such message")
		return
	}
	switch verb {
	case "LIST":
		m.expect(fmt.Sprintf("+OK %d %d", n, m.drop.list[i].Octets))
	case "UIDL":
		m.expect(fmt.Sprintf("+OK %d %s", n, m.drop.list[i].ID))
	case "DELE":
		m.expect("+OK")
		m.marked[i] = true
	case "RETR":
		m.expect("+OK")
		m.body(stuffed(asSent(m.drop.bodies[i], m.drop.list[i].LFDot)))
	case "TOP":
		m.expect("+OK")
		m.body(stuffed(topAsSent(m.drop.bodies[i], m.drop.list[i].LFDot, most)))
	}
}

// stuffed doubles the dots that begin a line.
func stuffed(msg []byte) string {
	s := strings.ReplaceAll(string(msg), "\r\n.", "\r\n..")
	if strings.HasPrefix(s, ".") {
		s = "." + s
	}
	return s
}

// topAsSent is the header of a message and most lines of its body.
func topAsSent(raw []byte, lfDot bool, most int64) []byte {
	var cut []byte
	body, left := false, most
	for line := range bytes.Lines(raw) {
		if body && left == 0 {
			break
		}
		cut = append(cut, line...)
		if body {
			left--
		}
		if s := string(line); s == "\n" || s == "\r\n" {
			body = true
		}
	}
	if len(cut) == len(raw) {
		return asSent(raw, lfDot)
	}
	out := asSent(append(cut, "\r\n"...), lfDot) // so that nothing is added
	out = out[:len(out)-2]
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\r\n")) {
		out = append(out, "\r\n"...)
	}
	return out
}
