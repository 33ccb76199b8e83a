package dialog

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Player is the client's end of a connection on which scripts are played.
//
// The connection has to take what is sent without waiting for the server to read
// it, as TCP does and net.Pipe does not, unless no script sends two lines in a row.
type Player struct {
	Conn net.Conn      // what is sent goes here
	In   *bufio.Reader // what the server says comes from here

	TLS     *tls.Config   // for the handshake
	Timeout time.Duration // for each line of the server; zero: 20 s
	// Do does what a script asks of the test. arg is what stands behind word.
	Do map[string]func(arg string) error
	// Heard, if not nil, is told every line of the server.
	Heard func(line string)

	tcp     net.Conn // beneath TLS
	unread  *string  // a line that was looked at
	sending error    // why sending failed
	ended   bool     // the server has ended the connection
}

// New returns a Player on a connection on which nothing was said yet.
func New(c net.Conn) *Player {
	return &Player{Conn: c, In: bufio.NewReaderSize(c, 64<<10), tcp: c}
}

// Play plays scripts, one behind the other. The connection stays as they leave it.
func (p *Player) Play(scripts ...*Script) error {
	for _, s := range scripts {
		for i := range s.steps {
			if err := p.step(&s.steps[i]); err != nil {
				return fmt.Errorf("%s: %w", s.steps[i].at(), err)
			}
		}
	}
	return nil
}

// End checks that the server has said nothing but what was expected: it ends what
// is sent, upon which the server has to end the connection without a word. After
// S. or S! it has nothing to do.
func (p *Player) End() error {
	if p.ended {
		return nil
	}
	if p.sending != nil {
		return fmt.Errorf("at the end: sending: %w", p.sending)
	}
	if err := p.closeWrite(p.Conn); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	if err := p.expectEnd(&step{verb: "S."}); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

func (p *Player) step(s *step) error {
	if p.ended && s.verb[0] != 'S' && (s.verb[0] == 'C' || s.verb == "TLS") {
		return fmt.Errorf("the server has ended the connection, %s cannot follow", s.verb)
	}
	switch s.verb {
	case "C:", "C-":
		p.send(s.octets)
	case "C.":
		return p.closeWrite(p.Conn)
	case "C!":
		return p.closeWrite(p.tcp)
	case "TLS":
		return p.handshake()
	case "S:", "S-", "S~":
		line, err := p.line()
		switch {
		case err != nil:
			return fmt.Errorf("expected %s %s, got %s", s.verb, s.arg, p.lost(line, err))
		case !s.matches(line):
			return fmt.Errorf("expected %s %s, got %q", s.verb, s.arg, line)
		}
	case "S*":
		for {
			line, err := p.line()
			if err != nil {
				return fmt.Errorf("expected %s %s, or another line, got %s", s.verb, s.arg, p.lost(line, err))
			}
			if !s.matches(line) {
				p.unread = &line
				return nil
			}
		}
	case "S.", "S!":
		return p.expectEnd(s)
	default:
		f, ok := p.Do[s.verb]
		if !ok {
			return fmt.Errorf("nobody knows what %s means", s.verb)
		}
		return f(s.arg)
	}
	return nil
}

func (s *step) matches(line string) bool {
	switch {
	case s.pattern != nil:
		return s.pattern.MatchString(line)
	case s.prefix:
		return strings.HasPrefix(line, string(s.octets))
	}
	return line == string(s.octets)
}

func (p *Player) timeout() time.Time {
	if p.Timeout > 0 {
		return time.Now().Add(p.Timeout)
	}
	return time.Now().Add(20 * time.Second)
}

// send sends. It may fail because the server has ended the connection, so whether
// that was right is seen from what the server said.
func (p *Player) send(b []byte) {
	p.Conn.SetWriteDeadline(p.timeout())
	defer p.Conn.SetWriteDeadline(time.Time{})
	if _, err := p.Conn.Write(b); err != nil && p.sending == nil {
		p.sending = err
	}
}

func (p *Player) closeWrite(c net.Conn) error {
	h, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("a %T cannot be half-closed, so the script has to end with S. itself", c)
	}
	if err := h.CloseWrite(); err != nil && p.sending == nil {
		p.sending = err
	}
	return nil
}

func (p *Player) handshake() error {
	if p.unread != nil || p.In.Buffered() > 0 {
		left, _ := p.In.Peek(p.In.Buffered())
		return fmt.Errorf("the server said %q before the handshake", left)
	}
	c := tls.Client(endless{p.Conn}, p.TLS)
	p.Conn.SetDeadline(p.timeout())
	defer p.tcp.SetDeadline(time.Time{})
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	p.Conn, p.In = c, bufio.NewReaderSize(c, 64<<10)
	return nil
}

// errCut says that a connection ended beneath TLS.
var errCut = errors.New("an end without close_notify")

// endless makes an error of the end of a connection, which tls.Conn takes for its
// own end if it falls between two records.
type endless struct{ net.Conn }

func (e endless) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	if err == io.EOF {
		err = errCut
	}
	return n, err
}

// line returns the next line of the server without its CRLF. With an error it
// returns what there was of the line.
func (p *Player) line() (string, error) {
	if u := p.unread; u != nil {
		p.unread = nil
		return *u, nil
	}
	p.Conn.SetReadDeadline(p.timeout())
	defer p.Conn.SetReadDeadline(time.Time{})
	var all []byte
	for {
		part, err := p.In.ReadSlice('\n')
		all = append(all, part...)
		if err != nil && err != bufio.ErrBufferFull {
			return string(all), err
		}
		if line, ok := bytes.CutSuffix(all, []byte("\r\n")); ok {
			if p.Heard != nil {
				p.Heard(string(line))
			}
			return string(line), nil
		}
	}
}

// lost describes a line that did not come.
func (p *Player) lost(part string, err error) string {
	text := "the end"
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		text = "nothing"
	case err != io.EOF:
		text = err.Error()
	}
	if part != "" {
		text = fmt.Sprintf("%q, which has no CRLF, and then %s", part, text)
	}
	if p.sending != nil {
		text += fmt.Sprintf(" (sending failed: %v)", p.sending)
	}
	return text
}

// expectEnd reads to the end of the connection.
func (p *Player) expectEnd(s *step) error {
	var rest []byte
	if p.unread != nil {
		rest, p.unread = append([]byte(*p.unread), "\r\n"...), nil
	}
	p.Conn.SetReadDeadline(p.timeout())
	defer p.Conn.SetReadDeadline(time.Time{})
	const enough = 1 << 20 // to show what is wrong
	more, err := io.ReadAll(io.LimitReader(p.In, enough))
	rest = append(rest, more...)
	var alert tls.AlertError
	broken := errors.Is(err, errCut) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe) || errors.As(err, &alert)
	_, secure := p.Conn.(*tls.Conn)
	got := "the end"
	switch {
	case len(more) == enough:
		got = "no end of it"
	case errors.Is(err, os.ErrDeadlineExceeded):
		got = "no end"
	case err != nil && !broken:
		return fmt.Errorf("expected the end, got %w", err)
	case s.verb == "S!" && secure && err == nil:
		got = "close_notify"
	case s.verb == "S." && errors.Is(err, errCut):
		got = err.Error()
	case s.pattern == nil && len(rest) == 0, s.pattern != nil && s.pattern.Match(rest):
		p.ended = true
		return nil
	}
	if len(rest) > 0 {
		got = fmt.Sprintf("%q and then %s", rest, got)
	}
	want := "the end of the connection"
	if s.verb == "S!" {
		want = "a connection broken off"
	}
	if s.pattern != nil {
		want = s.arg + " and then " + want
	}
	return fmt.Errorf("expected %s, got %s", want, got)
}
