package smtpnode

import (
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/lineproto"
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
