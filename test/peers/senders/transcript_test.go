//go:build peers

package senders

import (
	"bytes"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// transaction is one message as a sender put it on the wire, and what it was told.
type transaction struct {
	from   string
	params string   // of MAIL
	to     []string // recipients that were accepted
	octets []byte   // without transparency or chunks
	chunks int      // of BDAT; 0 for DATA
	code   int      // the final reply
	reply  []string // its lines
}

// ids are the names that the final reply gave the message, one for each mailbox.
func (x transaction) ids() (ids []string) {
	for _, line := range x.reply {
		if _, id, ok := strings.Cut(line, "stored "); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

var crlf = []byte("\r\n")

// transcript reads a session again, from its first octet to its last: the commands and
// messages of the client along with the replies to them.
type transcript struct {
	client, server []byte
	done           []transaction
	now            transaction
}

// decode returns the transactions of a session that got a final reply. A session that
// does not follow RFC 5321 and RFC 3030, or ends within a message, is an error.
func decode(client, server []byte) ([]transaction, error) {
	s := &transcript{client: client, server: server}
	if code, lines := s.reply(); code != 220 {
		return nil, fmt.Errorf("greeted with %d %q", code, lines)
	}
	for len(s.client) > 0 {
		line, rest, ok := bytes.Cut(s.client, crlf)
		if !ok {
			return s.done, fmt.Errorf("ends within the command %.80q", s.client)
		}
		s.client = rest
		if err := s.command(string(line)); err != nil {
			return s.done, fmt.Errorf("%.80q: %w", line, err)
		}
	}
	if len(s.server) > 0 && !farewell.Match(s.server) {
		return s.done, fmt.Errorf("replies to nothing: %.200q", s.server)
	}
	return s.done, nil
}

// farewell ends a session that the server has had enough of (RFC 5321 section 3.8): here,
// of what a client that pipelines says behind a MAIL that is refused.
var farewell = regexp.MustCompile(`^421 4\.7\.0 [^\r\n]*\r\n$`)

// reply takes the next reply (RFC 5321 section 4.2.1); its code is 0 if there is none.
func (s *transcript) reply() (code int, lines []string) {
	for {
		line, rest, ok := bytes.Cut(s.server, crlf)
		if !ok || len(line) < 4 {
			return 0, lines
		}
		s.server = rest
		lines = append(lines, string(line[4:]))
		if line[3] == ' ' {
			code, _ = strconv.Atoi(string(line[:3]))
			return code, lines
		}
	}
}

func (s *transcript) command(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	if verb == "BDAT" {
		return s.bdat(arg)
	}
	code, lines := s.reply()
	if code == 0 && verb != "QUIT" {
		return fmt.Errorf("no reply")
	}
	switch verb {
	case "EHLO", "HELO", "RSET":
		s.now = transaction{}
	case "MAIL":
		path, params, _ := strings.Cut(arg, " ")
		s.now = transaction{from: address(path), params: params}
	case "RCPT":
		if path, _, _ := strings.Cut(arg, " "); code == 250 {
			s.now.to = append(s.now.to, address(path))
		}
	case "DATA":
		if code != 354 {
			break
		}
		// RFC 5321 section 4.5.2: the dot that begins a line is not the message's.
		const end = "\r\n.\r\n"
		stuffed, rest, ok := bytes.Cut(append([]byte("\r\n"), s.client...), []byte(end))
		if !ok {
			return fmt.Errorf("ends within the message")
		}
		s.now.octets = bytes.ReplaceAll(append(stuffed, crlf...), []byte("\r\n."), crlf)[len(crlf):]
		s.client = rest
		return s.end(s.reply())
	case "QUIT", "NOOP":
	default:
		return fmt.Errorf("not expected of a sender; answered %d %q", code, lines)
	}
	return nil
}

// address is what stands between the brackets of "FROM:<a@b>".
func address(path string) string {
	_, path, _ = strings.Cut(path, "<")
	path, _, _ = strings.Cut(path, ">")
	return path
}

// bdat takes a chunk (RFC 3030 section 2).
func (s *transcript) bdat(arg string) error {
	size, last, _ := strings.Cut(arg, " ")
	n, err := strconv.Atoi(size)
	if err != nil || n > len(s.client) {
		return fmt.Errorf("%d octets follow", len(s.client))
	}
	s.now.octets = append(s.now.octets, s.client[:n]...)
	s.now.chunks++
	s.client = s.client[n:]
	code, lines := s.reply()
	if strings.EqualFold(last, "LAST") || code != 250 {
		return s.end(code, lines)
	}
	return nil
}

// end notes the final reply.
func (s *transcript) end(code int, lines []string) error {
	s.now.code, s.now.reply = code, lines
	s.done = append(s.done, s.now)
	s.now = transaction{}
	if code == 0 {
		return fmt.Errorf("no reply to the message")
	}
	return nil
}

// The recordings are judged by what decode makes of them, so it is checked against
// sessions written by hand.
func TestTranscript(t *testing.T) {
	const greeting, ok = "220 a ESMTP\r\n", "250 2.0.0 ok\r\n"
	for _, test := range []struct {
		name, client, server string
		want                 []transaction
		fails                bool
	}{
		{name: "dots, pipelined",
			client: "EHLO x\r\nMAIL FROM:<a@b> SIZE=5\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\n..\r\n...b\n.\n.\r\n.\r.\r\n\r\n.\r\nQUIT\r\n",
			server: greeting + "250-a\r\n250 SIZE\r\n" + ok + ok + "550 5.1.1 no\r\n354 go\r\n250-2.0.0 stored 1\r\n250 2.0.0 stored 2\r\n221 bye\r\n",
			want: []transaction{{from: "a@b", params: "SIZE=5", to: []string{"c@d"}, octets: []byte(".\r\n..b\n.\n.\r\n\r.\r\n\r\n"), code: 250,
				reply: []string{"2.0.0 stored 1", "2.0.0 stored 2"}}}},
		{name: "nothing, by DATA", client: "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n", server: greeting + ok + ok + ok + "354 go\r\n" + ok,
			want: []transaction{{to: []string{"c@d"}, octets: []byte{}, code: 250, reply: []string{"2.0.0 ok"}}}},
		{name: "chunks", client: "EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 7\r\n.\r\nQUITBDAT 3 LAST\r\n\r\n.QUIT\r\n",
			server: greeting + ok + ok + ok + ok + ok,
			want:   []transaction{{from: "a@b", to: []string{"c@d"}, octets: []byte(".\r\nQUIT\r\n."), chunks: 2, code: 250, reply: []string{"2.0.0 ok"}}}},
		{name: "cut off", client: "EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n", server: greeting + ok + ok + ok + "354 go\r\n", fails: true},
		{name: "a chunk cut off", client: "EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 9 LAST\r\nx\r\n", server: greeting + ok + ok + ok, fails: true},
		{name: "told to go", client: "EHLO x\r\n", server: greeting + ok + "421 4.7.0 a too many errors\r\n"},
		{name: "replies left over", client: "EHLO x\r\n", server: greeting + ok + ok, fails: true},
	} {
		got, err := decode([]byte(test.client), []byte(test.server))
		if (err != nil) != test.fails || !test.fails && !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
}
