package archive

import "fmt"

// source hands out octets as they arrive: next, at least one, of which the caller
// has then used some.
type source interface {
	next() ([]byte, error)
	used(n int)
}

// unstuff reads a multi-line response up to its end and returns the message in it
// (RFC 1939 section 3). A line ends at CRLF and nowhere else. octets is how long
// the message has to be; no more is kept.
func unstuff(src source, octets int64) ([]byte, error) {
	const atOnce = 1 << 20 // believed before it is there
	msg := make([]byte, 0, min(octets, atOnce))
	const (
		start  = iota // of a line
		inside        // of a line
		cr            // inside, behind a CR
		dot           // behind a dot that starts a line
		dotCR         // and a CR
	)
	at := start
	for {
		p, err := src.next()
		if err != nil {
			return nil, err
		}
		for i, b := range p {
			switch at {
			case start:
				if b == '.' {
					at = dot
					continue
				}
			case dot:
				if b == '\r' {
					at = dotCR
					continue
				}
				if b != '.' {
					return nil, fmt.Errorf("%w: dot not doubled", ErrProtocol)
				}
				at = inside
			case dotCR:
				if b != '\n' {
					return nil, fmt.Errorf("%w: dot not doubled", ErrProtocol)
				}
				src.used(i + 1)
				if int64(len(msg)) != octets {
					return nil, fmt.Errorf("%w: %d, listed %d", ErrOctets, len(msg), octets)
				}
				return msg, nil
			}
			switch {
			case b == '\r':
				at = cr
			case b == '\n' && at == cr:
				at = start
			default:
				at = inside
			}
			if int64(len(msg)) == octets {
				return nil, fmt.Errorf("%w: more than %d", ErrOctets, octets)
			}
			msg = append(msg, b)
		}
		src.used(len(p))
	}
}
