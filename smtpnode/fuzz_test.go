package smtpnode

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
)

// recorder is a session that keeps what it acknowledged. Some addresses make it
// refuse.
type recorder struct {
	from   string
	to     []string
	stored []letter
}

func (s *recorder) Reset()        { s.from, s.to = "", nil }
func (s *recorder) Logout() error { return nil }

func (s *recorder) Mail(from string, _ *smtp.MailOptions) error {
	if from == "later@x" {
		return temporary(452, 3, 1, "no room", errors.New("test"))
	}
	s.from = from
	return nil
}

func (s *recorder) Rcpt(to string, _ *smtp.RcptOptions) error {
	switch to {
	case "later@x":
		return temporary(451, 1, 1, "not yet", errors.New("test"))
	case "nobody@x":
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "nobody"}
	}
	s.to = append(s.to, to)
	return nil
}

func (s *recorder) Data(r io.Reader) error {
	if s.from == "early@x" {
		return errors.New("fails before it reads")
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		return err
	}
	if s.from == "late@x" {
		return errors.New("fails in the end")
	}
	s.stored = append(s.stored, letter{s.from, strings.Join(s.to, " "), b.String()})
	return nil
}

var replyLine = regexp.MustCompile(`^([2345][0-9][0-9])([ -])(?:([245]\.[0-9]\.[0-9]) )?[\x20-\x7e\x80-\xff]*\r\n$`)

// replies takes what a server said apart. A reply is its code, a space and the
// enhanced code; rest is what stands behind the last line that belongs to one.
func replies(t *testing.T, out []byte) (all []string, rest []byte) {
	t.Helper()
	open := ""
	for len(out) > 0 {
		line := out
		if i := bytes.IndexByte(out, '\n'); i >= 0 {
			line = out[:i+1]
		}
		f := replyLine.FindSubmatch(line)
		if f == nil {
			break
		}
		reply := string(f[1]) + " " + string(f[3])
		if open != "" && reply != open {
			t.Fatalf("%q in a reply of lines that begin with %q", line, open)
		}
		if open = reply; f[2][0] == ' ' {
			all, open = append(all, reply), ""
		}
		out = out[len(line):]
	}
	if open != "" {
		t.Fatalf("a reply that began with %q has no last line", open)
	}
	return all, out
}

// FuzzSession gives the engine any octets and checks, against a model that is
// written to be plain: the session ends; every line it says is a reply, and the one
// that belongs there; the messages that it acknowledges are stored as they were
// sent, and no others are.
func FuzzSession(f *testing.F) {
	hello := "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\n"
	for _, s := range []string{
		"", "QUIT\r\n", hello + "DATA\r\nhi\r\n..\r\n.\r\nQUIT\r\n", hello + "BDAT 3\r\nabcBDAT 0 LAST\r\n",
		hello + "BDAT 3\r\nabcRSET\r\nMAIL FROM:<>\r\n", hello + "BDAT 9 LAST\r\nabc", hello + "DATA\r\na\n.\r\nb\r.\r\n.\r\n",
		"EHLO x\r\nBDAT 3\r\nabcNOOP\r\n", "MAIL FROM:<\"a\\\"b\"@c> SIZE=1 BODY=8BITMIME SMTPUTF8\r\n", "\x16\x03\x01",
		"EHLO x\r\nMAIL FROM:<later@x>\r\nRCPT TO:<a@b>\r\nDATA\r\nBDAT 1 LAST\r\nxRSET\r\nDATA\r\n",
		"EHLO x\r\nMAIL FROM:<early@x>\r\nRCPT TO:<a@b>\r\nBDAT 2\r\nabBDAT 0\r\nBDAT 0 LAST\r\n",
		"EHLO x\r\nMAIL FROM:<late@x>\r\nRCPT TO:<a@b>\r\nDATA\r\na\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<nobody@x>\r\nRCPT TO:<later@x>\r\nDATA\r\n",
		hello + "DATA\r\n" + strings.Repeat("x\r\n", 40) + ".\r\nNOOP\r\n", hello + "BDAT 101 LAST\r\n" + strings.Repeat("x", 101) + "NOOP\r\n",
		hello + "BDAT 201 LAST\r\n", hello + "DATA\r\n" + strings.Repeat("x", 400) + "\r\n.\r\nNOOP\r\n",
		strings.Repeat("NOOP\r\n", 50), strings.Repeat("X\r\n", 20), strings.Repeat("x", 2100) + "\r\nNOOP\r\n", "GET / HTTP/1.1\r\n",
		"EHLO x\r\nMAIL FROM:<a@b> BODY=BINARYMIME SMTPUTF8 SIZE=100\r\nRCPT TO:<@c,@d:\"e f\"@\xc3\xb6>\r\nDATA\r\nBDAT 1 LAST\r\n\x00",
		hello + "MAIL FROM:<c@d>\r\nRCPT TO:<e@f>\r\nDATA\r\nx\r\n.\r\n", hello + "DATA\r\n" + strings.Repeat("x", 98) + "\r\n.\r\n",
		"EHLO x\r\nSTARTTLS\r\nNOOP\r\n", "HELO x y\r\nRCPT TO:<a>\r\nVRFY a\r\nHELP\r\nNOOP\tx\r\nNOOP \tx\r\n",
		"R\xc5\xbfET\r\nEHLO x\r\r\nNOOP\r\nMAIL FROM:<> \x0b\r\nMAIL FROM:<> SIZE=1\rBODY=7BIT\r\nMAIL FROM:<\"a\"b\"c\"@d>\r\nMAIL FROM:<> \xc5\xbfIZE=1\r\n",
		"EHLO x\r\nMAIL FROM:<@\xff:a@b>\r\nMAIL FROM:<@\"x:\"y@z>\r\nDATA \x0c\r\n" + "BDAT 0\tLAST\r\n",
	} {
		for _, piece := range []byte{0, 1, 7} {
			f.Add([]byte(s), piece, piece == 0)
		}
	}
	secure := &tls.Config{Certificates: []tls.Certificate{certOnce()}}
	f.Fuzz(func(t *testing.T, in []byte, piece byte, withTLS bool) {
		limits := referenceLimits{size: 100, errors: 5, idle: 30, recipients: 3, tls: withTLS}
		opt := Options{Host: "mx", Store: noStore{}, MaxSize: int64(limits.size), MaxErrors: limits.errors, MaxIdle: limits.idle, MaxRecipients: limits.recipients}
		if withTLS {
			opt.TLS = secure
		}
		rec := &recorder{}
		s := New(opt)
		s.newSession = func(*conn) smtp.Session { return rec }
		out := play(s, in, int(piece))
		got, rest := replies(t, out)
		m := &reference{in: in, limit: limits, got: got}
		m.run()
		if !slices.Equal(got, m.replies) {
			t.Fatalf("replies\n%q, expected\n%q", got, m.replies)
		}
		handshake := len(got) > 0 && got[len(got)-1] == "220 2.0.0" && bytes.HasPrefix(rest, []byte{0x15, 3}) || bytes.HasPrefix(rest, []byte{0x16, 3})
		if len(rest) > 0 && !handshake {
			t.Fatalf("not a reply: %q", rest)
		}
		if !slices.Equal(rec.stored, m.stored) {
			t.Fatalf("stored %q, expected %q", rec.stored, m.stored)
		}
	})
}
