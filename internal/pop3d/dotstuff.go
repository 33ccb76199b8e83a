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
		// Where no LF is sent as CRLF, only those before a dot are of interest.
		sought := "\n."
		if s.lfDot {
			sought = "\n"
		}
		n := bytes.Index(p, []byte(sought)) + 1
		if n == 0 {
			n = len(p)
		}
		piece := p[:n]
		lf := piece[n-1] == '\n'
		s.crlf = lf && s.cr
		if lf && n > 1 {
			s.crlf = piece[n-2] == '\r'
		}
		if lf && !s.crlf && s.lfDot {
			s.w.Write(piece[:n-1])
			piece = []byte("\r\n")
			s.octets += int64(n - 1)
		}
		s.within, s.cr = !s.crlf && !(lf && s.lfDot), piece[len(piece)-1] == '\r'
		s.octets += int64(len(piece))
		// bufio.Writer keeps the first error; this call gives it back.
		if _, err := s.w.Write(piece); err != nil {
			return taken - len(p), err
		}
		p = p[n:]
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
