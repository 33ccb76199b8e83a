package smtpnode

import (
	"bytes"
	"context"
	"io"
	"net"
	"time"
)

// tape is a connection whose peer has said everything and then half-closed: a
// session on it runs in one goroutine and waits for nothing.
type tape struct {
	net.Conn // what is not needed
	in       []byte
	piece    int // octets per read; 0: all at once
	out      bytes.Buffer
}

func (c *tape) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := len(p)
	if c.piece > 0 {
		n = min(n, c.piece)
	}
	n = copy(p[:n], c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *tape) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *tape) Close() error                     { return nil }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }
func (c *tape) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 25} }
func (c *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000} }

// play runs a session of s in which the peer says in, and returns what s said.
func play(s *Server, in []byte, piece int) []byte {
	c := &tape{in: in, piece: piece}
	s.Handle(context.Background(), c)
	return c.out.Bytes()
}
