package pop3d

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

func crlfLines(n int) string {
	return strings.Repeat("The quick brown fox jumps over the lazy dog, once more, and once more.\r\n", n/72+1)[:n/72*72]
}

// What a strict client reads is what came in, and as long as it was listed.
func TestRetrieve(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	noise := make([]byte, 300_000) // dense in what matters
	for i := range noise {
		noise[i] = "\r\n.\r\n.x\x00\xff"[random.IntN(9)]
	}
	cases := map[string]string{
		"empty":              "",
		"plain":              "A: b\r\n\r\nbody\r\n",
		"8-bit":              "A: \xff\xfe\x80\x00\r\n\r\n\xc3\xbc\r\n",
		"bare LF":            "A: b\n\nbody\nend\r\n",
		"only bare LF":       "\n",
		"ends in bare LF":    "A: b\r\n\r\nbody\n",
		"bare CR":            "A\rB\r\r\n\r.\r\n",
		"ends in CR":         "A\r",
		"only CR":            "\r",
		"only CRLF":          "\r\n",
		"leading dots":       ".\r\n..\r\n.x\r\n...\r\n",
		"no final newline":   "A: b\r\n\r\nbody",
		"ends in a dot":      "A: b\r\n\r\n.",
		"one dot":            ".",
		"LF dot":             "a\n.\nb\n..\nc\r\n",
		"LF dot CRLF":        "a\n.\r\nMAIL FROM:<x>\r\n",
		"CRLF dot LF":        "a\r\n.\nb\r\n",
		"LF dot and CR":      "a\r\n\r.\r\r\n\n.\r.",
		"LF dot, ends in LF": "a\n.b\n",
		"a line over 100 KB": "A: b\r\n\r\n" + strings.Repeat("x", 150_000) + "\r\n." + strings.Repeat(".", 150_000) + "\r\n",
		"one chunk":          strings.Repeat("x", chunkSize-2) + "\r\n",
		"CR | LF":            strings.Repeat("x", chunkSize) + "\r\n.\r\n",
		"CRLF | dot":         strings.Repeat("x", chunkSize-1) + "\r\n.\r\n",
		"LF | dot":           strings.Repeat("x", chunkSize) + "\n.\r\n",
		"30 MB":              strings.Repeat(strings.Repeat(".x", 499)+"\r\n", 30<<10),
		"noise":              string(noise),
		"noise without LF .": strings.ReplaceAll(string(noise), "\n.", "\r\n."),
	}
	for name, raw := range cases {
		for _, chunks := range []string{"whole", "small"} {
			if chunks == "small" && len(raw) > 1<<20 {
				continue
			}
			t.Run(name+", "+chunks, func(t *testing.T) {
				t.Parallel()
				drop := newMaildrop(raw)
				if chunks == "small" {
					drop.open = func(context.Context, int) (io.ReadCloser, error) {
						return io.NopCloser(iotest.DataErrReader(iotest.OneByteReader(strings.NewReader(raw)))), nil
					}
				}
				s := start(t, drop, false)
				c := s.loggedIn(t)
				c.script("C: RETR 1", "S: +OK...")
				got, err := c.body()
				if err != nil {
					t.Fatal(err)
				}
				if want := asSent([]byte(raw), drop.list[0].LFDot); !bytes.Equal(got, want) {
					at := 0
					for at < min(len(got), len(want)) && got[at] == want[at] {
						at++
					}
					t.Errorf("got %d octets, want %d; they differ at %d", len(got), len(want), at)
				}
				if name == "LF dot" && string(got) != "a\r\n.\r\nb\r\n..\r\nc\r\n" {
					t.Errorf("got %q", got)
				}
				c.script(octets("LIST 1\r\nSTAT\r\nQUIT\r\n"), // pipelined
					fmt.Sprintf("S: +OK 1 %d", len(got)), fmt.Sprintf("S: +OK 1 %d", len(got)), "S: +OK", "S.")
				if strings.Contains(s.log.String(), "as listed") {
					t.Errorf("log: %s", s.log)
				}
			})
		}
	}
}

// failing reads good and then fails.
func failing(good string, err error) func(context.Context, int) (io.ReadCloser, error) {
	return func(context.Context, int) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(good), iotest.ErrReader(err))), nil
	}
}

var errSeal = errors.New("message authentication failed")

// A message that fails before it is begun is refused, and the session goes on.
func TestUnreadableAtOnce(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(context.Context, int) (io.ReadCloser, error){
		"does not open":    func(context.Context, int) (io.ReadCloser, error) { return nil, errSeal },
		"fails at once":    failing("", errSeal),
		"short and broken": failing("A: b\r\n", errSeal),
		"truncated":        failing("A: b\r\n", io.ErrUnexpectedEOF), // as age says it
		"truncated empty":  failing("", io.ErrUnexpectedEOF),
		"a chunk, then":    failing(strings.Repeat("x", chunkSize), io.ErrUnexpectedEOF),
		"with the error": func(context.Context, int) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("x"), iotest.DataErrReader(io.MultiReader(strings.NewReader("y"), iotest.ErrReader(errSeal))))), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drop := three()
			drop.open = open
			s := start(t, drop, false)
			c := s.loggedIn(t)
			c.script("C: RETR 2", "S: -ERR [SYS/TEMP]...", "C: TOP 2 0", "S: -ERR [SYS/TEMP]...", "C: NOOP", "S: +OK")
			s.stop()
			<-s.done
			if !strings.Contains(s.log.String(), "level=ERROR") || !strings.Contains(s.log.String(), id(1)) {
				t.Errorf("log: %s", s.log)
			}
		})
	}
}

// A message that fails midway never gets its final dot, and deletes nothing.
func TestUnreadableMidway(t *testing.T) {
	t.Parallel()
	for _, err := range []error{errSeal, io.ErrUnexpectedEOF} {
		for _, implicit := range []bool{true, false} {
			drop := three()
			drop.open = failing(crlfLines(1<<20), err)
			s := start(t, drop, false)
			c := s.client(t, implicit)
			if implicit {
				c.script(inClear)
			} else {
				c.script(withTLS)
			}
			c.script(loginOfMailbox)
			c.script(octets("DELE 1\r\nRETR 2\r\nQUIT\r\n"), "S: +OK...", "S: +OK message follows")
			if got, err := c.body(); err == nil {
				t.Errorf("%d octets and a final dot", len(got))
			}
			s.stop()
			<-s.done
			if deletes, _ := drop.state(); deletes != nil {
				t.Errorf("deleted %v", deletes)
			}
			if !strings.Contains(s.log.String(), "retrieved=0 deleted=0 octets=0") || !strings.Contains(s.log.String(), `outcome="message unreadable"`) {
				t.Errorf("log: %s", s.log)
			}
		}
	}
}

// After the failure nothing is sent, not even what was ready.
func TestUnreadableIsTheEnd(t *testing.T) {
	t.Parallel()
	a := manyMessages(1)
	c := &tape{in: strings.NewReader(login + "RETR 1\r\nQUIT\r\n"), keep: true}
	var before int
	a.drops[mailbox].open = func(context.Context, int) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(crlfLines(1<<20)), readerFunc(func([]byte) (int, error) {
			before = c.out.Len()
			return 0, errSeal
		}))), nil
	}
	play(quietServer(a), c, true)
	if before == 0 || c.out.Len() != before {
		t.Errorf("%d octets sent, then %d more", before, c.out.Len()-before)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// counted counts what is read of a message, and whether it was closed.
type counted struct {
	io.Reader
	read   *atomic.Int64
	closed *atomic.Bool
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c counted) Close() error { c.closed.Store(true); return nil }

func TestTop(t *testing.T) {
	t.Parallel()
	header := "A: b\r\nC: .d\r\n"
	long := header + "\r\n" + crlfLines(1<<20)
	tests := []struct {
		name, raw, want string
		lines           string
		most            int64 // octets read
	}{
		{"header", header + "\r\n1\r\n", header + "\r\n", "0", 1 << 20},
		{"one line", header + "\r\n.1\r\n2\r\n", header + "\r\n.1\r\n", "1", 1 << 20},
		{"more than there is", header + "\r\n1\r\n2", header + "\r\n1\r\n2\r\n", "9223372036854775807", 1 << 20},
		{"only a header", header, header, "5", 1 << 20},
		{"header unended", "A: b", "A: b\r\n", "5", 1 << 20},
		{"no header", "\r\n1\r\n2\r\n", "\r\n1\r\n", "1", 1 << 20},
		{"empty", "", "", "1", 1 << 20},
		{"bare LF", "A: b\nC\n\n1\n2\n3\n", "A: b\nC\n\n1\n\r\n", "1", 1 << 20},
		{"bare LF and dot", "A: b\n\n.1\n.2\n.3\n", "A: b\r\n\r\n.1\r\n", "1", 1 << 20},
		{"CR CR LF is no empty line", "A\r\n\r\r\nB\r\n\r\n1\r\n", "A\r\n\r\r\nB\r\n\r\n", "0", 1 << 20},
		{"long, header", long, header + "\r\n", "0", chunkSize + 1},
		{"long, many lines", long, header + "\r\n" + crlfLines(144_000), "2000", 144_000 + 2*chunkSize},
		{"CR begins a chunk", strings.Repeat("x", chunkSize+1) + "\r\nB: c\r\n\r\n1\r\n", strings.Repeat("x", chunkSize+1) + "\r\nB: c\r\n\r\n", "0", 1 << 20},
		{"LF begins a chunk", strings.Repeat("x", chunkSize-2) + "\r\n\r\n1\r\n", strings.Repeat("x", chunkSize-2) + "\r\n\r\n", "0", 1 << 20},
		{"long, cut at a chunk's end", strings.Repeat("x", chunkSize-3) + "\r\n\r\n" + crlfLines(1<<20), strings.Repeat("x", chunkSize-3) + "\r\n\r\n", "0", chunkSize + 1},
		{"long, cut after a chunk's end", strings.Repeat("x", chunkSize) + "\r\n\r\n1\r\n" + crlfLines(1<<20), strings.Repeat("x", chunkSize) + "\r\n\r\n1\r\n", "1", 2*chunkSize + 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			drop := newMaildrop(tt.raw)
			var read atomic.Int64
			var closed atomic.Bool
			drop.open = func(context.Context, int) (io.ReadCloser, error) {
				return counted{strings.NewReader(tt.raw), &read, &closed}, nil
			}
			c := start(t, drop, false).loggedIn(t)
			c.script("C: TOP 1 "+tt.lines, "S: +OK top of message follows")
			got, err := c.body()
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got %d octets %.200q, want %d octets %.200q", len(got), got, len(tt.want), tt.want)
			}
			c.script("C: NOOP", "S: +OK")
			if read.Load() > tt.most || !closed.Load() {
				t.Errorf("read %d octets of %d, closed: %v", read.Load(), len(tt.raw), closed.Load())
			}
		})
	}
}

// A maildrop that lists the wrong size is still served, and loudly.
func TestWrongSize(t *testing.T) {
	t.Parallel()
	drop := three()
	drop.list[0].Octets++
	s := start(t, drop, false)
	s.loggedIn(t).script("C: RETR 1", "S: +OK...", "S: abc", "S: .", "C: QUIT", "S: +OK", "S.")
	if !strings.Contains(s.log.String(), "listed=6 sent=5") {
		t.Errorf("log: %s", s.log)
	}
}

func BenchmarkRetrieve(b *testing.B) {
	a := &archive{password: password, drops: map[string]*maildrop{mailbox: newMaildrop(crlfLines(30 << 20))}}
	srv := quietServer(a)
	b.SetBytes(30 << 20)
	b.ReportAllocs()
	for b.Loop() {
		play(srv, &tape{in: strings.NewReader(login + "RETR 1\r\nQUIT\r\n")}, true)
	}
}
