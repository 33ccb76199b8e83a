package archive

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Limits on what a server may send. RFC 2449 section 4 has 512 octets for a line
// of a response.
const (
	maxLine     = 512
	maxMessages = 10_000_000
	maxMessage  = 1 << 30 // octets
)

// Message is an entry of the maildrop.
type Message struct {
	Number int
	Octets int64  // as LIST has it
	UIDL   string // unique-id listing (RFC 1939 section 7)
}

// Conn is a POP3 session. It is for one goroutine.
type Conn struct {
	cfg     Config
	raw     net.Conn
	conn    net.Conn // the TLS connection once there is one
	r       *bufio.Reader
	release func() bool  // of the context
	ended   func() error // why the context ended, if it did
}

// Dial connects, starts TLS and reads the greeting. When ctx ends, so does the
// session: the connection is closed.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, err
	}
	if cfg.TLS == nil {
		cfg.TLS = &tls.Config{}
	}
	cfg.TLS = cfg.TLS.Clone()
	cfg.TLS.ServerName = cmp.Or(cfg.TLS.ServerName, host)
	cfg.Timeout = cmp.Or(cfg.Timeout, time.Minute)
	d := net.Dialer{Timeout: cfg.Timeout}
	raw, err := d.DialContext(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, err
	}
	c := &Conn{cfg: cfg, raw: raw, ended: ctx.Err}
	c.use(raw)
	c.release = context.AfterFunc(ctx, func() { raw.Close() })
	if err := c.open(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) use(conn net.Conn) {
	c.conn, c.r = conn, bufio.NewReaderSize(conn, 64<<10)
}

func (c *Conn) open(ctx context.Context) error {
	if !c.cfg.STLS {
		if err := c.startTLS(ctx); err != nil {
			return err
		}
	}
	if _, err := c.response("greeting"); err != nil {
		return err
	}
	if !c.cfg.STLS {
		return nil
	}
	if _, err := c.command("STLS"); err != nil {
		return err
	}
	// RFC 2595 section 4: what was said in clear does not count.
	if c.r.Buffered() > 0 {
		return fmt.Errorf("%w: text behind the response to STLS", ErrProtocol)
	}
	return c.startTLS(ctx)
}

func (c *Conn) startTLS(ctx context.Context) error {
	conn := tls.Client(c.raw, c.cfg.TLS)
	if err := c.raw.SetDeadline(time.Now().Add(c.cfg.Timeout)); err != nil {
		return c.lost(err)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return c.lost(fmt.Errorf("TLS: %w", err))
	}
	c.use(conn)
	return nil
}

// Close closes the connection. Without Quit nothing is deleted.
func (c *Conn) Close() error {
	c.release()
	return c.raw.Close()
}

// Capabilities returns what CAPA lists, a line each (RFC 2449).
func (c *Conn) Capabilities() ([]string, error) {
	var caps []string
	err := c.listing("CAPA", 100, func(line string) error {
		if line == "" {
			return fmt.Errorf("%w: empty capability", ErrProtocol)
		}
		caps = append(caps, line)
		return nil
	})
	return caps, err
}

// Login says USER and PASS.
func (c *Conn) Login() error {
	for _, s := range []string{c.cfg.User, c.cfg.Password} {
		if s == "" || strings.ContainsAny(s, "\r\n\x00") {
			return errors.New("user name or password empty or of several lines")
		}
	}
	if _, err := c.command("USER", c.cfg.User); err != nil {
		return err
	}
	_, err := c.command("PASS", c.cfg.Password)
	return err
}

// Stat returns the number of messages and of their octets.
func (c *Conn) Stat() (n int, octets int64, err error) {
	text, err := c.command("STAT")
	if err != nil {
		return 0, 0, err
	}
	count, rest, _ := strings.Cut(text, " ")
	rest, _, _ = strings.Cut(rest, " ") // more may follow (RFC 1939 section 5)
	n, err = number(count)
	size, serr := number(rest)
	if err = errors.Join(err, serr); err != nil {
		return 0, 0, fmt.Errorf("STAT: %w", err)
	}
	return n, int64(size), nil
}

// number reads a decimal number as RFC 1939 has them: without sign, and here
// without leading zeros.
func number(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || s != strconv.Itoa(n) {
		return 0, fmt.Errorf("%w: number %q", ErrProtocol, s)
	}
	return n, nil
}

// Messages returns the maildrop from STAT, LIST and UIDL, which must agree.
func (c *Conn) Messages() ([]Message, error) {
	n, octets, err := c.Stat()
	if err != nil {
		return nil, err
	}
	var list []Message
	byNumber := map[int]int{}
	err = c.listing("LIST", maxMessages, func(line string) error {
		a, b, _ := strings.Cut(line, " ")
		b, _, _ = strings.Cut(b, " ") // more may follow (RFC 1939 section 5)
		num, err := number(a)
		if err != nil {
			return err
		}
		size, err := number(b)
		if err != nil {
			return err
		}
		if _, twice := byNumber[num]; twice || num == 0 {
			return fmt.Errorf("%w: message %d in LIST", ErrProtocol, num)
		}
		byNumber[num] = len(list)
		list = append(list, Message{Number: num, Octets: int64(size)})
		octets -= int64(size)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(list) != n || octets != 0 {
		return nil, fmt.Errorf("%w: STAT and LIST differ: %d messages and %d, %d octets apart", ErrProtocol, n, len(list), octets)
	}
	seen := map[string]bool{}
	err = c.listing("UIDL", maxMessages, func(line string) error {
		a, id, _ := strings.Cut(line, " ")
		num, err := number(a)
		if err != nil {
			return err
		}
		i, ok := byNumber[num]
		if !ok || list[i].UIDL != "" || !validUIDL(id) {
			return fmt.Errorf("%w: UIDL says %q", ErrProtocol, line)
		}
		list[i].UIDL, seen[id] = id, true
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(seen) != n {
		return nil, fmt.Errorf("%w: UIDL has %d names for %d messages", ErrProtocol, len(seen), n)
	}
	return list, nil
}

func validUIDL(id string) bool {
	if len(id) < 1 || len(id) > 70 {
		return false
	}
	for i := range len(id) {
		if id[i] < '!' || id[i] > '~' {
			return false
		}
	}
	return true
}

// Retrieve returns message m octet for octet. One that is not as long as m says is
// ErrOctets.
func (c *Conn) Retrieve(m Message) ([]byte, error) {
	if m.Octets > maxMessage {
		return nil, fmt.Errorf("message of %d octets; %d are the limit here", m.Octets, maxMessage)
	}
	if _, err := c.command("RETR", strconv.Itoa(m.Number)); err != nil {
		return nil, err
	}
	msg, err := unstuff(waiting{c}, m.Octets)
	if err != nil {
		return nil, fmt.Errorf("RETR %d: %w", m.Number, err)
	}
	return msg, nil
}

// Delete marks message m; Quit deletes it.
func (c *Conn) Delete(m Message) error {
	_, err := c.command("DELE", strconv.Itoa(m.Number))
	return err
}

// Quit ends the session and so deletes what is marked. After an error it is not
// known what was deleted, unless the error is an *Error.
func (c *Conn) Quit() error {
	defer c.Close()
	_, err := c.command("QUIT")
	return err
}

// command sends a command and returns what +OK says.
func (c *Conn) command(verb string, args ...string) (string, error) {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.cfg.Timeout)); err != nil {
		return "", fmt.Errorf("%s: %w", verb, c.lost(err))
	}
	line := strings.Join(append([]string{verb}, args...), " ") + "\r\n"
	if _, err := io.WriteString(c.conn, line); err != nil {
		return "", fmt.Errorf("%s: %w", verb, c.lost(err))
	}
	return c.response(verb)
}

// response reads the first line of a response.
func (c *Conn) response(verb string) (string, error) {
	line, err := c.line()
	if err != nil {
		return "", fmt.Errorf("%s: %w", verb, err)
	}
	status, text, _ := strings.Cut(line, " ")
	switch status {
	case "+OK":
		return text, nil
	case "-ERR":
		e := &Error{Command: verb, Text: text}
		if rest, ok := strings.CutPrefix(text, "["); ok {
			if code, after, ok := strings.Cut(rest, "]"); ok {
				e.Code, e.Text = strings.ToUpper(code), strings.TrimPrefix(after, " ")
			}
		}
		return "", e
	}
	return "", fmt.Errorf("%s: %w: %q", verb, ErrProtocol, line)
}

// listing reads the lines of a multi-line response, at most limit.
func (c *Conn) listing(verb string, limit int, each func(string) error) error {
	if _, err := c.command(verb); err != nil {
		return err
	}
	for n := 0; ; n++ {
		line, err := c.line()
		if err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
		if line == "." {
			return nil
		}
		if rest, ok := strings.CutPrefix(line, "."); ok {
			if line = rest; !strings.HasPrefix(line, ".") {
				return fmt.Errorf("%s: %w: dot not doubled", verb, ErrProtocol)
			}
		}
		if n == limit {
			return fmt.Errorf("%s: %w: more than %d lines", verb, ErrProtocol, limit)
		}
		if err := each(line); err != nil {
			return fmt.Errorf("%s: %w", verb, err)
		}
	}
}

// lost says why the connection failed.
func (c *Conn) lost(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if ended := c.ended(); ended != nil {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// line reads a line that ends with CRLF and returns it without.
func (c *Conn) line() (string, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(c.cfg.Timeout)); err != nil {
		return "", c.lost(err)
	}
	b, err := c.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || len(b) > maxLine {
		return "", fmt.Errorf("%w: line too long", ErrProtocol)
	}
	if err != nil {
		return "", c.lost(err)
	}
	s, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok || strings.ContainsAny(s, "\r\x00") {
		return "", fmt.Errorf("%w: line %q", ErrProtocol, b)
	}
	return s, nil
}

// waiting is the connection's buffer with a deadline for each filling of it.
type waiting struct{ c *Conn }

// next returns what is there, at least one octet. It is valid until the next call.
func (w waiting) next() ([]byte, error) {
	r := w.c.r
	if r.Buffered() == 0 {
		if err := w.c.conn.SetReadDeadline(time.Now().Add(w.c.cfg.Timeout)); err != nil {
			return nil, w.c.lost(err)
		}
		if _, err := r.Peek(1); err != nil {
			return nil, w.c.lost(err)
		}
	}
	return r.Peek(r.Buffered())
}

// used says how much of that was taken.
func (w waiting) used(n int) { w.c.r.Discard(n) }
