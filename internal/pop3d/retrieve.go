package pop3d

import (
	"bytes"
	"context"
	"io"
)

// chunkSize is how much of a message is read at a time. A sealed message of one
// chunk is wholly authenticated before any of it is sent.
const chunkSize = 64 << 10

// fill reads until p is full or r fails. io.EOF is the only good end. (io.ReadFull
// will not do: its io.ErrUnexpectedEOF for a short message is also what a reader
// says of a truncated one.)
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = r.Read(p[n:])
		n += k
	}
	return n, err
}

// top cuts a message after its header, the empty line and some lines of its body.
// A line ends at LF here, with or without CR, so that a message of bare LFs has a
// header too.
type top struct {
	lines uint64 // of the body, still to come
	body  bool
	begun bool // a line has
	cr    bool // and is a CR so far
}

// take returns the part of p that belongs to the answer, and whether that was all.
func (t *top) take(p []byte) ([]byte, bool) {
	for at := 0; at < len(p); {
		if t.body && t.lines == 0 {
			return p[:at], true
		}
		i := bytes.IndexByte(p[at:], '\n')
		line := p[at:]
		if i >= 0 {
			line = p[at : at+i]
		}
		if len(line) > 0 {
			t.cr = !t.begun && len(line) == 1 && line[0] == '\r'
			t.begun = true
		}
		if i < 0 {
			return p, false
		}
		if t.body {
			t.lines--
		} else {
			t.body = !t.begun || t.cr
		}
		t.begun, t.cr = false, false
		at += i + 1
	}
	return p, t.body && t.lines == 0
}

// send answers RETR (cut is nil) or TOP with message i. work ends when a stopping
// server has waited long enough.
func (s *session) send(work context.Context, i int, cut *top) error {
	m := s.list[i]
	r, err := s.drop.Open(work, i)
	if err != nil {
		s.unreadable(m, err)
		return nil
	}
	defer r.Close()
	if s.chunk == nil {
		s.chunk = make([]byte, chunkSize+1) // one more than a chunk, to meet its end
	}
	n, err := fill(r, s.chunk)
	if err != nil && err != io.EOF {
		s.unreadable(m, err)
		return nil
	}
	if cut == nil {
		s.reply("+OK message follows")
	} else {
		s.reply("+OK top of message follows")
	}
	out := stuffer{w: s.out, lfDot: m.LFDot}
	whole := false
	for done := false; ; {
		p := s.chunk[:n]
		if cut != nil {
			p, done = cut.take(p)
		}
		if _, werr := out.Write(p); werr != nil {
			return werr
		}
		if done || err == io.EOF {
			whole = err == io.EOF && len(p) == n
			break
		}
		if n, err = fill(r, s.chunk[:chunkSize]); err != nil && err != io.EOF {
			s.log.Error("pop3 message broke off", "id", m.ID, "err", err)
			return endUnreadable
		}
	}
	if err := out.end(!whole); err != nil {
		return err
	}
	if cut == nil {
		s.retrieved++
		s.octets += out.octets
		s.srv.metrics.retrieved.Inc()
		s.srv.metrics.octets.Add(float64(out.octets))
		if out.octets != m.Octets {
			s.log.Warn("pop3 message is not as long as listed", "id", m.ID, "listed", m.Octets, "sent", out.octets)
		}
	}
	return nil
}

// unreadable refuses a message of which nothing has been sent.
func (s *session) unreadable(m Message, err error) {
	s.log.Error("pop3 message unreadable", "id", m.ID, "err", err)
	s.reply("-ERR [SYS/TEMP] the message cannot be read now")
}
