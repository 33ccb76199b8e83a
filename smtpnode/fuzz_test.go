package smtpnode

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/journal"
	"msgw/internal/lineproto"
	"msgw/internal/seal"
)

// recorder is a session that keeps what it acknowledged.
type recorder struct {
	sink
	stored [][]byte
}

func (s *recorder) Data(r io.Reader) error {
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		return err
	}
	s.stored = append(s.stored, b.Bytes())
	return nil
}

var replyLine = regexp.MustCompile(`^[2345][0-9][0-9][ -][\x20-\x7e\x80-\xff]*\r\n$`)

// FuzzSession gives the engine any octets and checks: it ends, every line it says
// is a reply, it says 250 2.0.0 stored as often as a message was stored, and each
// stored message consists of octets that the peer sent.
func FuzzSession(f *testing.F) {
	hello := "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\n"
	for _, s := range []string{
		"", "QUIT\r\n", hello + "DATA\r\nhi\r\n..\r\n.\r\nQUIT\r\n", hello + "BDAT 3\r\nabcBDAT 0 LAST\r\n",
		hello + "BDAT 3\r\nabcRSET\r\nMAIL FROM:<>\r\n", hello + "BDAT 9 LAST\r\nabc", hello + "DATA\r\na\n.\r\nb\r.\r\n.\r\n",
		"EHLO x\r\nBDAT 3\r\nabcNOOP\r\n", "MAIL FROM:<\"a\\\"b\"@c> SIZE=1 BODY=8BITMIME SMTPUTF8\r\n", "\x16\x03\x01",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		rec := &recorder{}
		s := New(Options{Host: "mx", Store: noStore{}, MaxSize: 1000, Deadlines: lineproto.Deadlines{Idle: 50 * time.Millisecond}})
		s.newSession = func(*conn) smtp.Session { return rec }
		done := make(chan struct{})
		go func() { s.Handle(context.Background(), ours); ours.Close(); close(done) }()
		go func() { theirs.Write(in); theirs.Write([]byte("\r\n.\r\nQUIT\r\n")) }()
		out, _ := io.ReadAll(theirs)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("session does not end")
		}
		for _, line := range bytes.SplitAfter(out, []byte("\n")) {
			if len(line) > 0 && !replyLine.Match(line) {
				t.Fatalf("not a reply: %q", line)
			}
		}
		if n := bytes.Count(out, []byte("250 2.0.0 stored\r\n")); n != len(rec.stored) {
			t.Fatalf("%d acknowledged, %d stored", n, len(rec.stored))
		}
		for _, m := range rec.stored {
			for _, line := range bytes.SplitAfter(m, []byte("\r\n")) {
				if !bytes.Contains(append(in, "\r\n.\r\nQUIT\r\n"...), line) && !bytes.Contains(bytes.ToUpper(in), []byte("BDAT")) {
					t.Fatalf("stored %q, which was not sent", line)
				}
			}
		}
	})
}

// FuzzStored sends messages in any form to a real journal, breaks off anywhere, and
// checks that what was acknowledged is there, once, octet by octet, and nothing else.
func FuzzStored(f *testing.F) {
	f.Add([]byte("hello\r\n.\r\nworld\r\n"), uint16(0), byte(0))
	f.Add([]byte("a\n.\nb\r.\r\n..\r\n"), uint16(3), byte(1))
	f.Add([]byte("\r\n.\r\r\n.\r"), uint16(1000), byte(2))
	f.Add(bytes.Repeat([]byte(".\r\n"), 100), uint16(50), byte(7))
	dir := f.TempDir()
	j, err := journal.Open(dir, journal.Options{InlineMax: 2500, Reserve: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { j.Close() })
	_, ids := keyOnce()
	f.Fuzz(func(t *testing.T, msg []byte, cut uint16, how byte) {
		if len(msg) > 5000 {
			return
		}
		wire := []byte("EHLO x\r\nMAIL FROM:<> BODY=8BITMIME\r\nRCPT TO:<mbx-1@z>\r\n")
		want := msg
		if how&1 == 0 { // DATA; the message has to end a line
			want = append(bytes.Clone(msg), "\r\n"...)
			wire = append(wire, "DATA\r\n"...)
			for i, line := range bytes.SplitAfter(want, []byte("\r\n")) {
				if len(line) > 0 && line[0] == '.' && i >= 0 {
					wire = append(wire, '.')
				}
				wire = append(wire, line...)
			}
			wire = append(wire, ".\r\n"...)
		} else {
			chunk := 1 + int(how>>2)
			for p := msg; len(p) > 0; {
				n := min(chunk, len(p))
				wire = fmt.Appendf(wire, "BDAT %d\r\n%s", n, p[:n])
				p = p[n:]
			}
			wire = append(wire, "BDAT 0 LAST\r\n"...)
		}
		whole := true
		if how&2 != 0 {
			whole = int(cut) >= len(wire)
			wire = wire[:min(int(cut), len(wire))]
		}
		before := map[journal.ID]bool{}
		for _, m := range j.List("mbx-1") {
			before[m.ID] = true
		}
		ours, theirs := net.Pipe()
		s := New(Options{Host: "mx", Mailboxes: fakeMailboxes{}, Store: journalStore{j}, MaxIdle: 1 << 30})
		done := make(chan struct{})
		go func() { s.Handle(context.Background(), ours); ours.Close(); close(done) }()
		var out bytes.Buffer
		read := make(chan struct{})
		go func() { io.Copy(&out, theirs); close(read) }()
		theirs.SetWriteDeadline(time.Now().Add(10 * time.Second))
		theirs.Write(wire)
		if whole {
			theirs.Write([]byte("QUIT\r\n"))
		}
		for _, c := range []chan struct{}{done, read} {
			if !whole {
				theirs.Close()
			}
			select {
			case <-c:
			case <-time.After(10 * time.Second):
				t.Fatalf("session does not end: sent %q, got %q", wire, out.Bytes())
			}
		}
		theirs.Close()
		acked := bytes.Count(out.Bytes(), []byte("250 2.0.0 stored"))
		var got [][]byte
		for _, m := range j.List("mbx-1") {
			if before[m.ID] {
				continue
			}
			r, err := j.Open(m.ID)
			if err != nil {
				t.Fatal(err)
			}
			p, n, err := seal.Open(r, m.Sealed, ids)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(io.NewSectionReader(p, m.Trace, n-m.Trace))
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			got = append(got, b)
			if err := j.Delete(m.ID); err != nil {
				t.Fatal(err)
			}
		}
		if acked > len(got) || len(got) > 1 || (len(got) == 1) != whole {
			t.Fatalf("whole %v: %d acknowledged, %d stored", whole, acked, len(got))
		}
		if whole && (acked != 1 || !bytes.Equal(got[0], want)) {
			t.Fatalf("acknowledged %d, stored %q, want %q", acked, got[0], want)
		}
	})
}
