package pop3d

import (
	"bufio"
	"bytes"
	"strings"
	"testing"

	"msgw/internal/lineproto/dialog"
)

// A message comes out as it went in, as long as announced, whatever the chunks; no
// line of it looks like the end, even to a client that splits at LF.
func FuzzDotStuff(f *testing.F) {
	for _, in := range []string{"", ".", "\n", "\r", "\r\n", "\n.", "\r\n.", "\r.\r\n", "a\n.\r\nb", ".\r\n.\r\n", "a\r\n..\n.\n", "\r\r\n\n\r.\r\n"} {
		f.Add([]byte(in), byte(0), false)
		f.Add([]byte(in), byte(1), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, chunk byte, flag bool) {
		size, bareLF, endsCRLF, lfDot := measure(raw)
		lfDot = lfDot || flag // it may be said of any message
		var wire bytes.Buffer
		s := stuffer{w: bufio.NewWriterSize(&wire, 16), lfDot: lfDot}
		for rest := raw; len(rest) > 0; {
			n := min(len(rest), int(chunk)+1)
			if taken, err := s.Write(rest[:n]); taken != n || err != nil {
				t.Fatal(taken, err)
			}
			rest = rest[n:]
		}
		if err := s.end(false); err != nil {
			t.Fatal(err)
		}
		if err := s.w.Flush(); err != nil {
			t.Fatal(err)
		}
		want := asSent(raw, lfDot)
		if n := Octets(size, bareLF, endsCRLF, lfDot); n != s.octets || n != int64(len(want)) {
			t.Errorf("%d octets announced, %d counted, %d wanted", n, s.octets, len(want))
		}
		c := &client{t, &dialog.Player{In: bufio.NewReader(&wire)}}
		lines := strings.Split(strings.TrimSuffix(wire.String(), ".\r\n"), "\n")
		for _, l := range lines[:len(lines)-1] {
			if strings.TrimSuffix(l, "\r") == "." {
				t.Errorf("a line like the end within %q", lines)
			}
		}
		if got, err := c.body(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		if wire.Len()+c.In.Buffered() > 0 {
			t.Error("something stands behind the end")
		}
	})
}
