package sender

import (
	"bytes"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// content is what a message needs of a server.
type content struct {
	eightBit bool // octets above 127
	binary   bool // NUL, bare CR or LF, lines of more than 998 octets (RFC 2045 section 2.9)
	utf8     bool // UTF-8 in the header (RFC 6532)
}

func examine(msg []byte) content {
	var c content
	line := 0
	for i, b := range msg {
		line++
		switch {
		case b >= 0x80:
			c.eightBit = true
		case b == 0:
			c.binary = true
		case b == '\r':
			c.binary = c.binary || i+1 == len(msg) || msg[i+1] != '\n'
		case b == '\n':
			c.binary = c.binary || i == 0 || msg[i-1] != '\r' || line > 1000
			line = 0
		}
	}
	c.binary = c.binary || line > 998
	header, _, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
	c.utf8 = c.eightBit && !ascii(string(header)) && utf8.Valid(header)
	return c
}

// parameters returns the parameters of MAIL that the message needs and the server
// offers (RFC 1870, 6152, 3030, 6531). Octets are sent as they are in any case;
// only an address that is not ASCII cannot be.
func (x *Session) parameters(env Envelope, msg []byte) (string, *Error) {
	offered := func(keyword string) bool {
		_, ok := x.offers[keyword]
		return ok
	}
	if env.Chunks != nil && !offered("CHUNKING") {
		return "", x.lacks("CHUNKING")
	}
	if env.Chunks != nil && env.Chunks.Pipelined && !offered("PIPELINING") {
		return "", x.lacks("PIPELINING")
	}
	c := examine(msg)
	foreign := !ascii(env.From)
	for _, to := range env.To {
		foreign = foreign || !ascii(to)
	}
	p := ""
	if offered("SIZE") {
		p += " SIZE=" + strconv.Itoa(len(msg))
	}
	switch {
	case c.binary && env.Chunks != nil && offered("BINARYMIME"):
		p += " BODY=BINARYMIME"
	case c.eightBit && offered("8BITMIME"):
		p += " BODY=8BITMIME"
	}
	switch {
	case (foreign || c.utf8) && offered("SMTPUTF8"):
		p += " SMTPUTF8"
	case foreign: // RFC 6531 section 3.2
		return "", &Error{Host: x.to.host, Stage: "EHLO", Err: fmt.Errorf("SMTPUTF8 %w", ErrNotOffered)}
	}
	return p, nil
}
