package smtpnode

import (
	"errors"
	"io"
	"strconv"

	"msgw/internal/lineproto"
)

// errAborted says that the sender gave the message up.
var errAborted = errors.New("message given up by the sender")

// parseBDAT reads "size [LAST]" (RFC 3030 section 2).
func parseBDAT(arg string) (size int64, last bool, err error) {
	f := words(arg)
	if len(f) < 1 || len(f) > 2 || len(f) == 2 && lineproto.Upper(f[1]) != "LAST" {
		return 0, false, bad("expected BDAT size [LAST]")
	}
	n, err := strconv.ParseUint(f[0], 10, 62)
	if err != nil {
		return 0, false, bad("expected BDAT size [LAST]")
	}
	return int64(n), len(f) == 2, nil
}

// bdatCommand receives a message in chunks, from its first BDAT to the last.
func (c *conn) bdatCommand(arg string) {
	size, last, err := parseBDAT(arg)
	if err != nil {
		// Where the chunk ends, and so where the next command starts, is unknown.
		c.replyError(err)
		c.broken = errors.New("BDAT without a readable size")
		c.bw.Flush()
		return
	}
	r := &bdatReader{c: c, chunk: size, last: last, left: c.maxSize()}
	if err := c.transferable(); err != nil {
		if c.broken = r.discardChunk(); c.broken == nil {
			c.replyError(err)
		}
		return
	}
	c.deliver(r, r.drain)
}

// bdatReader returns the octets of a message sent in chunks. Between chunks it
// answers and reads the commands itself, so that a message is received by one
// goroutine and has one result.
type bdatReader struct {
	c     *conn
	chunk int64 // octets left in this chunk
	last  bool  // it is the last one
	left  int64 // octets left of the size limit
	err   error
}

func (r *bdatReader) Read(p []byte) (int, error) {
	for r.err == nil && r.chunk == 0 {
		if r.last {
			r.err = io.EOF
		} else {
			r.err = r.nextChunk()
		}
	}
	if r.err == nil && r.chunk > r.left {
		r.err = errTooLarge
	}
	if r.err != nil {
		return 0, r.err
	}
	if int64(len(p)) > r.chunk {
		p = p[:r.chunk]
	}
	n, err := r.c.br.Read(p)
	r.chunk -= int64(n)
	r.left -= int64(n)
	r.err = unexpected(err)
	return n, r.err
}

// nextChunk answers for the chunk that is complete and reads commands up to the
// next BDAT.
func (r *bdatReader) nextChunk() error {
	c := r.c
	c.reply(250, "2.0.0", "chunk received")
	for {
		if c.errors >= c.srv.opt.MaxErrors || c.idle > c.srv.opt.MaxIdle {
			return errAborted
		}
		line, err := c.readCommand()
		if errors.Is(err, lineproto.ErrLineTooLong) {
			c.refuse(500, "5.5.2", "line too long")
			continue
		}
		if err != nil {
			return unexpected(err)
		}
		switch verb, arg := cutVerb(line); verb {
		case "BDAT":
			size, last, err := parseBDAT(arg)
			if err != nil {
				c.replyError(err)
				c.bw.Flush()
				return errors.New("BDAT without a readable size")
			}
			r.chunk, r.last = size, last
			if size > 0 || last {
				return nil
			}
			c.idle++
			c.reply(250, "2.0.0", "chunk received")
		case "NOOP":
			c.idle++
			c.reply(250, "2.0.0", "ok")
		case "RSET", "QUIT", "EHLO", "HELO", "STARTTLS":
			c.pending = &line
			return errAborted
		default:
			c.refuse(503, "5.5.1", "expected BDAT")
		}
	}
}

// drain brings the connection to where the next command starts. Chunks behind a
// failed one are the sender's next commands, each refused (RFC 3030 section 2).
func (r *bdatReader) drain() error {
	if r.err != nil && !errors.Is(r.err, io.EOF) && !errors.Is(r.err, errTooLarge) {
		return r.err
	}
	return r.discardChunk()
}

// discardChunk reads the rest of the chunk, unless it is absurdly long.
func (r *bdatReader) discardChunk() error {
	if r.chunk > 2*r.c.maxSize() {
		return errEndless
	}
	n, err := io.CopyN(io.Discard, r.c.br, r.chunk)
	r.chunk -= n
	return unexpected(err)
}
