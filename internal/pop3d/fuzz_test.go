package pop3d

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"msgw/internal/lineproto/dialog"
)

// watched is an archive that takes any password but "no", and no login in the clear.
type watched struct {
	t      *testing.T
	secure bool
}

func (w watched) Login(_ context.Context, user, password string) (Maildrop, error) {
	if !w.secure {
		w.t.Errorf("login of %q in the clear", user)
	}
	if password == "no" {
		return nil, ErrCredentials
	}
	return newMaildrop("abc\r\n", "A: b\r\n\r\n.\r\n..\r\nc", "\n.\n.\r\n.\n", ""), nil
}

// A session of whatever a stranger sends ends, without a panic; each line of the
// server is a reply or belongs to a response of many lines; nobody logs in in the
// clear.
func FuzzSession(f *testing.F) {
	long := strings.Repeat("A", 1500)
	for _, in := range []string{
		"",
		"QUIT",
		"CAPA\r\nQUIT\r\n",
		"USER a\r\nPASS b\r\nSTAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nRETR 4\r\nTOP 2 1\r\nDELE 1\r\nRSET\r\nDELE 2\r\nQUIT\r\n",
		"AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00a\x00b")) + "\r\nTOP 3 0\r\nDELE 1\r\n",
		"AUTH PLAIN\r\n*\r\nAUTH PLAIN\r\nAGEAYg==\r\nLIST 1\r\nUIDL 9\r\n",
		"AUTH PLAIN =\r\nAUTH PLAIN\r\n" + long + "\r\n" + long + "\r\n",
		"USER a\nPASS no\nUSER a\nPASS no\nUSER a\nPASS no\nNOOP\n",
		"STLS\r\nUSER a\r\nPASS b\r\n",
		"STLS\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n",
		"USER a\r\nPASS  \x00\xff\r\r\nRETR -1\r\nTOP 1 99999999999999999999\r\nLIST 01\r\n",
	} {
		f.Add([]byte(in), false)
		f.Add([]byte(in), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, secure bool) {
		c := &tape{in: bytes.NewReader(in), keep: true}
		play(quietServer(watched{t, secure}), c, secure)
		out := c.out.String()
		out, _, _ = strings.Cut(out, "\x15\x03") // the alert of a handshake that failed
		within := false
		for out != "" {
			line, rest, whole := strings.Cut(out, "\r\n")
			if !whole {
				t.Fatalf("%q has no end", line)
			}
			out = rest
			switch {
			case within:
				if line == "." {
					within = false
				} else if strings.HasPrefix(line, ".") && !strings.HasPrefix(line, "..") {
					t.Fatalf("%q is not stuffed", line)
				}
			case strings.HasPrefix(line, "+OK") || strings.HasPrefix(line, "-ERR "):
				within = strings.HasSuffix(line, "follows")
			case line != "+ ":
				t.Fatalf("%q is no reply", line)
			}
		}
		if within {
			t.Fatal("a response has no final dot")
		}
	})
}

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
