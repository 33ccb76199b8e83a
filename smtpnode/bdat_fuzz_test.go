package smtpnode

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/emersion/go-smtp"
)

// chunkPlay is a session made of steps, and what has to come of it.
type chunkPlay struct {
	size int // limit of a message

	in      []byte
	replies []string
	stored  []letter
	ended   bool

	greeted, mail, rcpt, open bool // open: inside a message, between its chunks
	msg                       []byte
}

func (p *chunkPlay) send(format string, args ...any) { p.in = fmt.Appendf(p.in, format, args...) }

func (p *chunkPlay) reset() { p.mail, p.rcpt, p.open, p.msg = false, false, false, nil }

// command is for what is refused between the chunks of a message.
func (p *chunkPlay) command(line, reply string) {
	p.send("%s\r\n", line)
	if p.open {
		reply = "503 5.5.1"
	}
	p.replies = append(p.replies, reply)
}

// giveUp is for what gives a message up.
func (p *chunkPlay) giveUp(line, reply string) {
	p.send("%s\r\n", line)
	p.replies = append(p.replies, reply)
	p.reset()
}

func (p *chunkPlay) chunk(octets []byte, last bool) {
	if p.send("BDAT %d", len(octets)); last {
		p.send(" LAST")
	}
	p.send("\r\n%s", octets)
	far := len(octets) > 2*p.size // not read to its end
	switch {
	case !p.rcpt && far:
		p.ended = true
	case !p.mail:
		p.replies = append(p.replies, "503 5.5.1")
	case !p.rcpt:
		p.replies = append(p.replies, "554 5.5.1")
	case len(p.msg)+len(octets) > p.size:
		p.replies = append(p.replies, "552 5.3.4")
		p.reset()
		p.ended = far
	case last:
		p.replies = append(p.replies, "250 2.0.0")
		p.stored = append(p.stored, letter{"f@x", "t@x", string(p.msg) + string(octets)})
		p.reset()
	default:
		p.replies = append(p.replies, "250 2.0.0")
		p.open, p.msg = true, append(p.msg, octets...)
	}
}

// step is one step, which op chooses.
func (p *chunkPlay) step(op, n byte) {
	octets := bytes.Repeat([]byte{n}, int(n)%60)
	switch op % 16 {
	case 0, 1, 2:
		p.chunk(octets, false)
	case 3, 4:
		p.chunk(octets, true)
	case 5:
		p.chunk(nil, n%2 == 0)
	case 6, 7: // whole, if nothing is in its way
		if p.command("MAIL FROM:<f@x>", map[bool]string{true: "503 5.5.1", false: "250 2.1.0"}[p.mail || !p.greeted]); p.greeted && !p.open {
			p.mail = true
		}
		if p.rcpt && !p.open {
			return // one recipient is enough
		}
		if p.command("RCPT TO:<t@x>", map[bool]string{true: "250 2.1.5", false: "503 5.5.1"}[p.mail]); p.mail && !p.open {
			p.rcpt = true
		}
	case 8:
		p.giveUp("RSET", "250 2.0.0")
	case 9:
		p.giveUp("EHLO x", "250 ")
		p.greeted = true
	case 10:
		p.send("NOOP\r\n")
		p.replies = append(p.replies, "250 2.0.0")
	case 11: // a message behind DATA, which is commands where DATA is refused
		switch {
		case p.rcpt && !p.open:
			p.send("DATA\r\nx\r\n.\r\n")
			p.replies = append(p.replies, "354 ", "250 2.0.0")
			p.stored = append(p.stored, letter{"f@x", "t@x", "x\r\n"})
			p.reset()
		case p.mail:
			p.command("DATA", "554 5.5.1")
		default:
			p.command("DATA", "503 5.5.1")
		}
	case 12: // lines that look like commands
		p.chunk([]byte("\r\n.\r\nRSET\r\nBDAT 0 LAST\r\n"), n%2 == 0)
	case 13: // up to three times the limit
		p.chunk(bytes.Repeat([]byte("x"), 3*p.size*int(n)/255), n%2 == 0)
	case 14: // cut off
		p.send("BDAT %d LAST\r\n%s", len(octets)+1, octets)
		p.ended = true
	case 15: // without a size
		p.send("BDAT %c LAST\r\nRSET\r\n", 'a'+n%26)
		p.replies = append(p.replies, "501 5.5.4")
		p.ended = true
	}
}

// FuzzBDAT plays sessions in which two octets choose each step, and checks that
// every message is answered once, with its own result, and stored as it was sent.
func FuzzBDAT(f *testing.F) {
	for _, ops := range []string{
		"",
		"\x09\x00\x06\x00\x00a\x03b", // two chunks
		"\x09\x00\x06\x00\x00a\x08\x00\x06\x00\x03b",         // given up, and the next
		"\x09\x00\x06\x00\x00a\x0a\x00\x05\x01\x0b\x00\x03b", // others between
		"\x09\x00\x06\x00\x0c\x00\x0c\x01\x0e\x05",           // cut off
		"\x09\x00\x06\x00\x0d\xc8\x06\x00\x0d\x50\x0f\x00",   // too large
		"\x09\x00\x06\x00\x00;\x00;\x06\x00\x03;",            // too large together
		"\x09\x00\x06\x00\x002\x032",                         // as large as can be
		"\x0d\xff", "\x03a\x09\x00\x03a", "\x09\x00\x06\x00\x0b\x00\x06\x00\x05\x00\x0f\x02",
	} {
		f.Add([]byte(ops), byte(0))
		f.Add([]byte(ops), byte(1))
	}
	f.Fuzz(func(t *testing.T, ops []byte, piece byte) {
		p := &chunkPlay{size: 100, replies: []string{"220 "}}
		for i := 0; i+1 < len(ops) && i < 400 && !p.ended; i += 2 {
			p.step(ops[i], ops[i+1])
		}
		rec := &recorder{}
		s := New(Options{Host: "mx", Store: noStore{}, MaxSize: int64(p.size), MaxErrors: 1 << 30, MaxIdle: 1 << 30})
		s.newSession = func(*conn) smtp.Session { return rec }
		got, rest := replies(t, play(s, p.in, int(piece)))
		if len(rest) > 0 {
			t.Fatalf("not a reply: %q", rest)
		}
		if !slices.Equal(got, p.replies) || !slices.Equal(rec.stored, p.stored) {
			t.Fatalf("sent %q\ngot      %q\nexpected %q\nstored   %q\nexpected %q", p.in, got, p.replies, rec.stored, p.stored)
		}
	})
}
