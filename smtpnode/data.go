package smtpnode

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/emersion/go-smtp"
)

// transferable says why no message can follow now, or nil.
func (c *conn) transferable() error {
	switch {
	case c.mail == nil:
		return c.outOfOrder("say MAIL first")
	case c.rcpts == 0 && c.trouble != nil:
		return c.trouble
	case c.rcpts == 0:
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 5, 1}, Message: "no valid recipients"}
	}
	return nil
}

// outOfOrder refuses a command that does not fit the one before it: as that one was
// refused, if it was refused for now.
func (c *conn) outOfOrder(text string) error {
	if c.trouble != nil {
		return c.trouble
	}
	return &smtp.SMTPError{Code: 503, EnhancedCode: smtp.EnhancedCode{5, 5, 1}, Message: text}
}

// dataCommand receives a message behind DATA (RFC 5321 section 4.1.1.4).
func (c *conn) dataCommand(arg string) {
	err := c.transferable()
	switch {
	case err != nil:
	case arg != "":
		err = bad("DATA takes no parameter")
	case c.mail.Body == smtp.BodyBinaryMIME:
		// RFC 3030 section 3.
		err = &smtp.SMTPError{Code: 503, EnhancedCode: smtp.EnhancedCode{5, 5, 1}, Message: "BINARYMIME needs BDAT"}
	}
	if err != nil {
		c.replyError(err)
		return
	}
	c.reply(354, "", "end with <CRLF>.<CRLF>")
	if err := c.bw.Flush(); err != nil {
		c.broken = err
		return
	}
	r := &dataReader{br: c.br, left: c.maxSize(), patience: c.maxSize(), dots: loneDots{tail: [2]byte{'\r', '\n'}}}
	c.deliver(r, r.drain)
}

// deliver runs the session's Data and answers for it. drain reads what the
// session left; the connection is broken if it cannot.
func (c *conn) deliver(r io.Reader, drain func() error) {
	var trouble *smtp.SMTPError // for the chunks that follow a failed one
	c.transferring.Store(true)
	c.line.BeginTransfer()
	err := c.session.Data(r)
	if rest := drain(); rest != nil {
		// Cut off inside the message, or aborted: nobody waits for an answer, but
		// who goes on for ever shall know better than to try again.
		if errors.Is(rest, errTooLarge) {
			c.replyError(errTooLarge)
			c.bw.Flush()
		}
		if !errors.Is(rest, errAborted) {
			c.broken = rest
		}
	} else if err == nil {
		c.reply(250, "2.0.0", "stored")
		c.accepted()
	} else {
		switch se := c.replyError(err); se.Code / 100 {
		case 2:
			c.accepted()
		case 4:
			trouble = se
		}
	}
	c.line.EndTransfer()
	c.transferring.Store(false)
	c.reset()
	c.trouble = trouble
}

// dataReader returns the octets of a message sent behind DATA. Its end is
// CRLF.CRLF and nothing else (RFC 5321 section 4.1.1.4); any other dot, LF or CR
// is content and passes unchanged, but for the dot that transparency added
// (section 4.5.2). A connection that ends earlier gives io.ErrUnexpectedEOF, a
// message larger than left gives errTooLarge.
type dataReader struct {
	br       *bufio.Reader
	left     int64
	patience int64 // octets that drain reads before it gives up
	inLine   bool  // the last octet read did not end a line
	cr       bool  // it was a CR
	ended    bool  // the end of the message was read
	dots     loneDots
	err      error
}

func (r *dataReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.next(p)
	for err == nil && n < len(p) && r.br.Buffered() >= 3 { // without waiting for more
		var m int
		m, err = r.next(p[n:])
		n += m
	}
	r.ended = err == io.EOF
	if int64(n) > r.left {
		n, err = int(r.left), errTooLarge
	}
	r.left -= int64(n)
	r.err = err
	return n, err
}

// next copies octets up to the end of a line, the end of p, or the end of what
// has arrived.
func (r *dataReader) next(p []byte) (int, error) {
	if !r.inLine {
		// At the start of a line at least ".CRLF" is still to come.
		start, err := r.br.Peek(3)
		if err != nil {
			return 0, unexpected(err)
		}
		if start[0] == '.' {
			r.br.Discard(1)
			if start[1] == '\r' && start[2] == '\n' {
				r.br.Discard(2)
				return 0, io.EOF
			}
			r.dots.next(start[:1])
		}
		r.inLine, r.cr = true, false
	}
	if _, err := r.br.Peek(1); err != nil {
		return 0, unexpected(err)
	}
	have, _ := r.br.Peek(min(r.br.Buffered(), len(p)))
	n := len(have)
	if i := bytes.IndexByte(have, '\n'); i >= 0 {
		n = i + 1
		if before := i - 1; before >= 0 && have[before] == '\r' || before < 0 && r.cr {
			r.inLine = false
		}
	}
	r.cr = have[n-1] == '\r'
	copy(p, have[:n])
	r.br.Discard(n)
	r.dots.next(p[:n])
	return n, nil
}

// ambiguous returns whether what was read so far holds a dot that another server may have
// taken for the end of the message.
func (r *dataReader) ambiguous() bool { return r.dots.found }

// loneDots looks for a dot with a CR or LF on either side, in the octets as they were sent.
// The one of CRLF.CRLF, which ends the message, is not given to it.
type loneDots struct {
	tail  [2]byte // the last octets; CRLF before the first
	found bool
}

func (d *loneDots) next(p []byte) {
	seam := [4]byte{d.tail[0], d.tail[1]}
	n := copy(seam[2:], p)
	d.found = d.found || loneDot(seam[:2+n]) || loneDot(p)
	switch n {
	case 1:
		d.tail = [2]byte{d.tail[1], p[0]}
	case 2:
		d.tail = [2]byte(p[len(p)-2:])
	}
}

func loneDot(p []byte) bool {
	for at := 1; at+1 < len(p); at++ {
		i := bytes.IndexByte(p[at:len(p)-1], '.')
		if i < 0 {
			return false
		}
		at += i
		if lineEnd(p[at-1]) && lineEnd(p[at+1]) {
			return true
		}
	}
	return false
}

func lineEnd(b byte) bool { return b == '\r' || b == '\n' }

// drain reads the rest of the message, as far as patience reaches.
func (r *dataReader) drain() error {
	switch {
	case r.ended:
		return nil
	case r.err != nil && !errors.Is(r.err, errTooLarge):
		return r.err
	}
	r.err = nil
	buf := make([]byte, 32<<10)
	for spent := int64(0); spent <= r.patience; { // one of patience octets ends as well
		n, err := r.next(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		spent += int64(n)
	}
	return errEndless
}

var errEndless = fmt.Errorf("sender goes on far beyond the size limit: %w", errTooLarge)

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
