package pop3d

import (
	"bufio"
	"bytes"
)

// Octets returns how many octets RETR sends for a message, the doubling of dots
// and the final dot not counted, which is what STAT and LIST have to say (RFC
// 1939, section 11): size octets came in, bareLF of them LFs without a CR before,
// endsCRLF says whether the last two were CRLF, and lfDot is Message.LFDot.
//
// A message goes out as it came in, but for two things. One whose own last octets
// are not CRLF gets CRLF appended, an empty one excepted: zero octets stay zero.
// And where lfDot, every bare LF is sent as CRLF, since a client that takes LF for
// a line's end would else take "LF . CRLF" inside it for the message's end.
func Octets(size, bareLF int64, endsCRLF, lfDot bool) int64 {
	n := size
	if lfDot {
		n += bareLF
	}
	if size > 0 && !endsCRLF {
		n += 2
	}
	return n
}

// stuffer writes a message as a multi-line response (RFC 1939, section 3): lines
// end with CRLF, and a dot that begins a line is doubled.
type stuffer struct {
	w     *bufio.Writer
	lfDot bool

	octets int64 // sent, doubled dots not counted
	within bool  // the last octet sent did not end a line
	cr     bool  // the last octet taken was a CR
	crlf   bool  // the last two octets taken were CRLF
}

func (s *stuffer) Write(p []byte) (int, error) {
	taken := len(p)
	for len(p) > 0 {
		if !s.within && p[0] == '.' {
			s.w.WriteByte('.')
		}
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			s.within, s.crlf, s.cr = true, false, p[len(p)-1] == '\r'
			s.octets += int64(len(p))
			_, err := s.w.Write(p)
			return taken, err
		}
		s.crlf = s.cr
		if i > 0 {
			s.crlf = p[i-1] == '\r'
		}
		line, end := p[:i], "\n"
		if !s.crlf && s.lfDot {
			end = "\r\n"
		}
		s.within, s.cr = !s.crlf && !s.lfDot, false
		s.octets += int64(len(line) + len(end))
		s.w.Write(line)
		// bufio.Writer keeps the first error; this call gives it back.
		if _, err := s.w.WriteString(end); err != nil {
			return taken - len(p), err
		}
		p = p[i+1:]
	}
	return taken, nil
}

// end ends the response. cut says that the message went on where it was left.
func (s *stuffer) end(cut bool) error {
	if s.within || !cut && s.octets > 0 && !s.crlf {
		s.octets += 2
		s.w.WriteString("\r\n")
	}
	_, err := s.w.WriteString(".\r\n")
	return err
}
