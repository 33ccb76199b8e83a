package sender

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Limits on a reply. RFC 5321 section 4.5.3.1.5 has 512 octets for a line.
const (
	maxReplyLine  = 1024
	maxReplyLines = 256
)

type reply struct {
	code  int
	lines []string // texts without code and line end; at least one
}

// readReply reads one reply (RFC 5321 section 4.2), waiting at most wait for all
// of it.
func (x *Session) readReply(wait time.Duration) (reply, error) {
	if err := x.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return reply{}, err
	}
	return parseReply(x.r)
}

// parseReply reads a reply of lines that end with CRLF and nothing else.
func parseReply(r *bufio.Reader) (reply, error) {
	var rep reply
	for len(rep.lines) < maxReplyLines {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || len(line) > maxReplyLine {
			return reply{}, fmt.Errorf("%w: line too long", ErrProtocol)
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return reply{}, err
		}
		text, ok := strings.CutSuffix(string(line), "\r\n")
		if !ok || strings.ContainsAny(text, "\r\x00") {
			return reply{}, fmt.Errorf("%w: %q", ErrProtocol, line)
		}
		code, more, text, ok := cutCode(text)
		if !ok || rep.code != 0 && code != rep.code {
			return reply{}, fmt.Errorf("%w: %q", ErrProtocol, line)
		}
		rep.code = code
		rep.lines = append(rep.lines, text)
		if !more {
			return rep, nil
		}
	}
	return reply{}, fmt.Errorf("%w: more than %d lines", ErrProtocol, maxReplyLines)
}

// cutCode splits "250-text"; more says that another line follows.
func cutCode(line string) (code int, more bool, text string, ok bool) {
	if len(line) < 3 {
		return 0, false, "", false
	}
	for _, c := range []byte(line[:3]) {
		if c < '0' || c > '9' {
			return 0, false, "", false
		}
		code = 10*code + int(c-'0')
	}
	if code < 200 || code > 599 {
		return 0, false, "", false
	}
	switch line = line[3:]; {
	case line == "":
		return code, false, "", true
	case line[0] == ' ' || line[0] == '-':
		return code, line[0] == '-', line[1:], true
	}
	return 0, false, "", false
}

// ids returns the message ids of a reply: the word behind "stored" at the start of
// a line, the enhanced status code not counted.
func (rep reply) ids() []string {
	var ids []string
	for _, line := range rep.lines {
		f := strings.Fields(line)
		if len(f) > 0 && strings.Count(f[0], ".") == 2 {
			f = f[1:]
		}
		if len(f) >= 2 && f[0] == "stored" {
			ids = append(ids, f[1])
		}
	}
	return ids
}

// write sends a command line.
func (x *Session) write(words ...string) error {
	x.w.WriteString(strings.Join(words, " "))
	x.w.WriteString("\r\n")
	return x.w.Flush() // it keeps the first error
}

// command sends a command and reads the reply to it. The error is that of a
// connection lost; a refusal is a reply.
func (x *Session) command(words ...string) (reply, *Error) {
	if err := x.write(words...); err != nil {
		return reply{}, x.lost(words[0], err)
	}
	rep, err := x.readReply(x.cfg.Timeouts.Reply)
	if err != nil {
		return reply{}, x.fail(words[0], err)
	}
	return rep, nil
}

// lost says why something could not be written: what the server said before it
// closed the connection, or else err.
func (x *Session) lost(stage string, err error) *Error {
	const patience = time.Second
	if rep, rerr := x.readReply(patience); rerr == nil && rep.code >= 400 {
		x.dead = err
		return x.refused(stage, rep)
	}
	return x.fail(stage, err)
}
