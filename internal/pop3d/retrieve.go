package pop3d

import (
	"bytes"
	"context"
	"io"
)

const (
	// chunkSize is how much of a message is read at a time. A message of one chunk is
	// wholly authenticated before any of it is sent.
	chunkSize = 128 << 10
	// topStep is the same for TOP. A sealed message is decrypted by 64 KiB.
	topStep = 16 << 10
)

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

// opened is a message that is being handed over.
type opened struct {
	i    int
	r    io.ReadCloser // nil once nothing more is read
	buf  []byte
	n    int   // octets of buf that belong to the answer
	err  error // of the last read
	done bool  // the answer ends with buf: the message does, or TOP wants no more
	cut  bool  // and the message goes on
}

// open opens message i and reads what the answer begins with, all of it if it fits
// into buf. The error is in what it returns.
func (s *session) open(work context.Context, i int, buf []byte, t *top) *opened {
	o := &opened{i: i, buf: buf}
	if o.r, o.err = s.drop.Open(work, i); o.err != nil {
		o.r = nil
		return o
	}
	if o.buf == nil {
		o.buf = make([]byte, chunkSize+1) // one more than a chunk, to meet its end
	}
	o.next(t)
	return o
}

// next reads the next part of the answer. For TOP it reads little at a time, since
// whatever is read is decrypted.
func (o *opened) next(t *top) {
	o.n = 0
	for o.err == nil && !o.done && o.n < len(o.buf) {
		p := o.buf[o.n:]
		if t != nil {
			p = p[:min(len(p), topStep)]
		}
		var k int
		k, o.err = fill(o.r, p)
		p = p[:k]
		if t != nil {
			p, o.done = t.take(p)
		}
		o.n += len(p)
		if o.done || o.err == io.EOF {
			o.done, o.cut = true, o.err == nil || len(p) < k
		}
	}
	if o.done || o.err != nil {
		o.close()
	}
}

// close lets go of the message; buf stays.
func (o *opened) close() {
	if o.r != nil {
		// It was only read: what was read tells whether it is whole.
		_ = o.r.Close()
		o.r = nil
	}
}

// broken says that the message cannot be read to its authenticated end.
func (o *opened) broken() bool { return o.err != nil && o.err != io.EOF }

// send answers RETR (cut is nil) or TOP with message i. work ends when a stopping
// server has waited long enough.
func (s *session) send(work context.Context, i int, cut *top) error {
	m := s.list[i]
	o := s.get(work, i, cut)
	defer func() {
		o.close()
		s.spare = o.buf
	}()
	if o.broken() {
		if s.unread == nil {
			s.unread = make(map[int]bool)
		}
		s.unread[i] = true
		s.unreadable(m, o.err)
		return nil
	}
	delete(s.unread, i)
	if cut == nil {
		s.reply("+OK message follows")
	} else {
		s.reply("+OK top of message follows")
	}
	out := stuffer{w: s.out, lfDot: m.LFDot}
	for {
		if _, err := out.Write(o.buf[:o.n]); err != nil {
			return err
		}
		if o.done {
			break
		}
		if o.next(cut); o.broken() {
			s.log.Error("pop3 message broke off", "id", m.ID, "err", o.err)
			return endUnreadable
		}
	}
	if err := out.end(o.cut); err != nil {
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
