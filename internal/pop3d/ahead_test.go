package pop3d

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// guarded is a maildrop that notes what is opened and sees to it that it is asked for
// one thing at a time.
type guarded struct {
	*maildrop
	t    *testing.T
	body func(i int) io.Reader

	busy   atomic.Bool
	open   atomic.Int64 // readers
	read   atomic.Int64 // octets of the message opened last
	mu     sync.Mutex
	opened []int
}

func (w *guarded) enter() (leave func()) {
	if w.busy.Swap(true) {
		w.t.Error("the maildrop was asked for two things at a time")
	}
	time.Sleep(time.Millisecond) // others would have the time to come in
	return func() { w.busy.Store(false) }
}

func (w *guarded) Open(_ context.Context, i int) (io.ReadCloser, error) {
	defer w.enter()()
	w.mu.Lock()
	w.opened = append(w.opened, i)
	w.mu.Unlock()
	w.open.Add(1)
	w.read.Store(0)
	return &guardedReader{Reader: w.body(i), w: w}, nil
}

func (w *guarded) Delete(ctx context.Context, which []int) error {
	defer w.enter()()
	return w.maildrop.Delete(ctx, which)
}

func (w *guarded) Close() {
	defer w.enter()()
	if n := w.open.Load(); n != 0 {
		w.t.Errorf("%d messages are still open", n)
	}
	w.maildrop.Close()
}

type guardedReader struct {
	io.Reader
	w    *guarded
	once sync.Once
}

func (r *guardedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.w.read.Add(int64(n))
	return n, err
}

func (r *guardedReader) Close() error {
	r.once.Do(func() { r.w.open.Add(-1) })
	return nil
}

// anyLogin is a Maildrops of one mailbox.
type anyLogin struct{ Maildrop }

func (d anyLogin) Login(context.Context, string, string) (Maildrop, error) { return d.Maildrop, nil }

// converse lets a session with a maildrop of five messages hear commands, and returns
// what it said.
func (w *guarded) converse(commands ...string) string {
	c := &tape{in: strings.NewReader(login + strings.Join(commands, "\r\n") + "\r\n"), keep: true}
	play(quietServer(anyLogin{w}), c, true)
	return c.out.String()
}

func newGuarded(t *testing.T, body func(i int) io.Reader) *guarded {
	return &guarded{t: t, maildrop: newMaildrop("0\r\n", "1\r\n", "2\r\n", "3\r\n", "4\r\n"), body: body}
}

// The message behind two that were asked for in sequence is opened before it is asked
// for, and no other one is.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		commands string
		opened   []int
	}{
		{"RETR 1", []int{0}},
		{"RETR 1, RETR 3, RETR 5", []int{0, 2, 4}},
		{"RETR 2, RETR 1", []int{1, 0}},
		{"RETR 1, RETR 1", []int{0, 0}},
		{"RETR 1, RETR 2", []int{0, 1, 2}},
		{"RETR 1, DELE 1, RETR 2, DELE 2, RETR 3, DELE 3, QUIT", []int{0, 1, 2, 3}},
		{"RETR 4, RETR 5", []int{3, 4}},
		{"DELE 3, RETR 1, RETR 2", []int{0, 1}},
		{"RETR 1, RETR 2, DELE 3, RETR 4, RETR 5", []int{0, 1, 2, 3, 4}},
		{"RETR 1, RETR 2, RETR 5", []int{0, 1, 2, 4}},
		{"RETR 1, RETR 2, TOP 3 0, RETR 3", []int{0, 1, 2, 2, 3}},
		{"TOP 1 0, TOP 2 0, TOP 3 0", []int{0, 1, 2}},
		{"RETR 1, RETR 2, DELE 3, RSET, RETR 3", []int{0, 1, 2, 3}},
	} {
		t.Run(tt.commands, func(t *testing.T) {
			t.Parallel()
			w := newGuarded(t, func(i int) io.Reader { return strings.NewReader(fmt.Sprintf("%d\r\n", i)) })
			said := w.converse(strings.Split(tt.commands, ", ")...)
			if !reflect.DeepEqual(w.opened, tt.opened) {
				t.Errorf("opened %v, want %v", w.opened, tt.opened)
			}
			for _, command := range strings.Split(tt.commands, ", ") {
				if n, ok := strings.CutPrefix(command, "RETR "); ok {
					if text := fmt.Sprintf("message follows\r\n%d\r\n.\r\n", n[0]-'1'); !strings.Contains(said, text) {
						t.Errorf("%q is missing in %q", text, said)
					}
				}
			}
			deletes, _ := w.state()
			if quit := strings.HasSuffix(tt.commands, "QUIT"); quit != (deletes != nil) {
				t.Errorf("deleted %v", deletes)
			}
		})
	}
}

// No more than a chunk is read of a message that nobody asked for.
func TestReadAheadIsBounded(t *testing.T) {
	t.Parallel()
	w := newGuarded(t, func(i int) io.Reader {
		if i == 2 {
			return strings.NewReader(crlfLines(1 << 20))
		}
		return strings.NewReader("x\r\n")
	})
	w.converse("RETR 1", "RETR 2")
	if !reflect.DeepEqual(w.opened, []int{0, 1, 2}) || w.read.Load() != chunkSize+1 {
		t.Errorf("opened %v, read %d octets ahead, want %d", w.opened, w.read.Load(), chunkSize+1)
	}
}

// A message that was read ahead and is broken is refused, or never ended, like any other;
// one that nobody asks for is nobody's trouble.
func TestReadAheadUnreadable(t *testing.T) {
	t.Parallel()
	for name, octets := range map[string]int{"at once": 1000, "midway": 1 << 20} {
		w := newGuarded(t, func(i int) io.Reader {
			if i == 2 {
				return io.MultiReader(strings.NewReader(crlfLines(octets)), readerFunc(func([]byte) (int, error) { return 0, errSeal }))
			}
			return strings.NewReader("x\r\n")
		})
		said := w.converse("RETR 1", "RETR 2", "RETR 3", "DELE 1", "QUIT")
		_, third, _ := strings.Cut(said, "x\r\n.\r\n+OK message follows\r\nx\r\n.\r\n")
		deletes, _ := w.state()
		switch {
		case name == "at once" && (third != "-ERR [SYS/TEMP] the message cannot be read now\r\n+OK deleted at QUIT\r\n+OK 1 messages deleted\r\n" || len(deletes) != 1):
			t.Errorf("%s: said %q, deleted %v", name, third, deletes)
		case name == "midway" && (!strings.HasPrefix(third, "+OK message follows\r\n") || strings.Contains(third, "\r\n.\r\n") || deletes != nil):
			t.Errorf("%s: said %d octets with a final dot, deleted %v", name, len(third), deletes)
		}
		if said := w.converse("RETR 1", "RETR 2", "NOOP"); !strings.HasSuffix(said, ".\r\n+OK\r\n") {
			t.Errorf("%s: said %q", name, said)
		}
	}
}

// TOP reads little more than it sends: what it reads is decrypted.
func TestTopReadsLittle(t *testing.T) {
	t.Parallel()
	for lines, most := range map[int]int64{0: topStep, 100: topStep, 1000: 5 * topStep, 2000: 9*topStep + 1} { // of 72 octets
		w := newGuarded(t, func(int) io.Reader { return strings.NewReader("A: b\r\n\r\n" + crlfLines(1<<20)) })
		w.converse(fmt.Sprintf("TOP 1 %d", lines))
		if w.read.Load() > most {
			t.Errorf("TOP 1 %d read %d octets, want at most %d", lines, w.read.Load(), most)
		}
	}
}

// However a message is cut into pieces, it is sent as a plain program would send it.
func TestStufferPieces(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	for range 20_000 {
		raw := make([]byte, random.IntN(40))
		for i := range raw {
			raw[i] = "\r\n.x"[random.IntN(4)]
		}
		size, bareLF, endsCRLF, lfDot := measure(raw)
		var got bytes.Buffer
		s := stuffer{w: bufio.NewWriterSize(&got, 16), lfDot: lfDot}
		for rest := raw; len(rest) > 0; {
			n := 1 + random.IntN(len(rest))
			if k, err := s.Write(rest[:n]); k != n || err != nil {
				t.Fatal(k, err)
			}
			rest = rest[n:]
		}
		if err := errors.Join(s.end(false), s.w.Flush()); err != nil {
			t.Fatal(err)
		}
		want := "\r\n" + string(asSent(raw, lfDot))
		want = strings.ReplaceAll(want, "\r\n.", "\r\n..")[2:] + ".\r\n"
		if got.String() != want || s.octets != Octets(size, bareLF, endsCRLF, lfDot) {
			t.Fatalf("seed %d: %q is sent as %q, want %q; %d octets", seed, raw, got.String(), want, s.octets)
		}
	}
}
