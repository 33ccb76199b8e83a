package smtpnode

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/journal"
	"msgw/internal/lineproto"
)

// The end of a message is seen wherever reads happen to break it up.
func TestDataReaderInPieces(t *testing.T) {
	t.Parallel()
	for _, m := range exact {
		if len(m.wire) > 1000 {
			continue
		}
		for _, in := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
			for _, piece := range []int{1, 2, 3, 5, 100} {
				r := &dataReader{br: bufio.NewReader(in(strings.NewReader(m.wire))), left: 1000, patience: 1000}
				got, err := io.ReadAll(readerOf(func(p []byte) (int, error) { return r.Read(p[:min(piece, len(p))]) }))
				if err != nil || string(got) != m.message {
					t.Errorf("%s in pieces of %d: %q, %v", m.name, piece, got, err)
				}
				if err := r.drain(); err != nil {
					t.Errorf("%s: drain: %v", m.name, err)
				}
			}
		}
	}
}

type readerOf func([]byte) (int, error)

func (f readerOf) Read(p []byte) (int, error) { return f(p) }

// troubled is a session that fails without choosing its words.
type troubled struct{ sink }

func (*troubled) Mail(from string, _ *smtp.MailOptions) error {
	if from == "" {
		return nil
	}
	return errors.New("secret")
}

func (*troubled) Data(r io.Reader) error {
	io.Copy(io.Discard, r)
	return errors.New("secret")
}

func TestUnknownErrorIsTemporary(t *testing.T) {
	t.Parallel()
	s := New(Options{Host: "mx", Store: noStore{}})
	s.newSession = func(*conn) smtp.Session { return &troubled{} }
	ours, theirs := net.Pipe()
	go func() { s.Handle(context.Background(), ours); ours.Close() }()
	defer theirs.Close()
	c := &client{t, theirs, bufio.NewReader(theirs)}
	theirs.SetDeadline(time.Now().Add(20 * time.Second))
	c.dialog(`S: 220
		C: EHLO x
		S: 250-
		C: MAIL FROM:<a@b>
		S: 451 4.3.0 temporary trouble
		C: MAIL FROM:<>
		S: 250
		C: RCPT TO:<a@b>
		S: 250
		C: DATA
		S: 354
		C: x
		C: .
		S: 451 4.3.0 temporary trouble`)
}

// Exchange Online stalls on a server that resumes TLS sessions.
func TestNoTLSResumption(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	conf := &tls.Config{InsecureSkipVerify: true, ServerName: "mx.example.org", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for range 2 {
		c := r.dial()
		c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: STARTTLS\nS: 220")
		tc := tls.Client(c.Conn, conf)
		c.Conn, c.r = tc, bufio.NewReader(tc)
		c.dialog("C: EHLO x\nS: 250-\nC: QUIT\nS: 221")
		if tc.ConnectionState().DidResume {
			t.Error("session resumed")
		}
		c.Close()
	}
}

func TestSilentHandshakeEnds(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.TLSTime = 50 * time.Millisecond })
	c := r.dial()
	c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: STARTTLS\nS: 220")
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(c.r); err != nil {
		t.Errorf("still open: %v", err)
	}
}

// The bound on commands starts anew with each message, holds between chunks, and a
// session that has sent a message is as idle as another.
func TestIdleCommands(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.MaxIdle, o.MaxRecipients, o.Grace = 5, 3, 10*time.Second })
	c := r.dial()
	c.dialog("S: 220\nC: EHLO x\nS: 250-")
	for range 4 {
		c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: x\nC: .\nS: 250")
	}
	for _, command := range []string{"NOOP", "BDAT 0"} {
		x := r.dial()
		x.dialog(envelope + "C: BDAT 2\nC: \nS: 250")
		for range 3 {
			x.dialog("C: " + command + "\nS: 250")
		}
		x.dialog("C: NOOP\nS: 421 4.7.0")
		x.closed()
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("stopped after %v", d)
	}
}

// A sender names all the recipients that it has, however many of them are refused for
// now: the others get the message. Who goes on for ever is stopped.
func TestMoreRecipientsThanAreTaken(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	most, suspended := strings.Repeat("RCPT TO:<mbx-1@z>\r\n", 100), strings.Repeat("RCPT TO:<suspended@z>\r\n", 500)
	replies := func(n int, want string) string { return strings.Repeat("S: "+want+"\n", n) }
	for rcpts, answers := range map[string]string{
		most + strings.Repeat("RCPT TO:<mbx-2@z>\r\n", 500): replies(100, "250 2.1.5") + replies(500, "452 4.5.3"),
		suspended + most: replies(500, "450 4.2.1") + replies(100, "250 2.1.5"),
	} {
		c := r.dial()
		c.dialog(greeting)
		c.send(rcpts + "DATA\r\n")
		c.dialog(answers + "S: 354\nC: x\nC: .\nS: 250")
	}
	if n := len(r.store.List("mbx-1")); n != 2 {
		t.Errorf("%d messages", n)
	}
	c := r.dial()
	c.dialog(greeting)
	c.send(most + suspended + suspended + "RCPT TO:<mbx-1@z>\r\n")
	c.dialog(replies(100, "250 2.1.5") + replies(1000, "452 4.5.3") + "S: 421 4.7.0")
	c.closed()
}

// The minimum rate is for transfers, not for the time after one.
func TestPauseAfterAMessage(t *testing.T) {
	t.Parallel()
	timed(t, lineproto.Deadlines{Idle: 5 * time.Minute, MinRate: 1 << 10, RateGrace: time.Minute}, func(c net.Conn, r *bufio.Reader) {
		for _, l := range []string{"EHLO x", "MAIL FROM:<>", "RCPT TO:<a@b>", "DATA", "x\r\n."} {
			say(c, r, l)
		}
		time.Sleep(4 * time.Minute)
		if got := say(c, r, "NOOP"); !strings.HasPrefix(got, "250") {
			t.Errorf("after a pause: %q", got)
		}
		if got := say(c, r, "QUIT"); !strings.HasPrefix(got, "221") {
			t.Errorf("after a pause: %q", got)
		}
	})
}

// roomStore notes what is asked for.
type roomStore struct {
	noStore
	asked atomic.Int64
}

func (s *roomStore) Room(n int64) error { s.asked.Store(n); return nil }

func TestBounds(t *testing.T) {
	t.Parallel()
	store := &roomStore{}
	r := start(t, func(o *Options) { o.MaxRecipients, o.Store = 2, store })
	c := r.dial()
	c.dialog(`S: 220
		C: EHLO x
		S: 250-
		C: MAIL FROM:<> SIZE=12345
		S: 250
		C: RCPT TO:<mbx-1@z>
		S: 250
		C: RCPT TO:<mbx-1+a@z>
		S: 250
		C: RCPT TO:<mbx-2@z>
		S: 452 4.5.3`)
	if n := store.asked.Load(); n != 12345 {
		t.Errorf("asked for %d octets of room", n)
	}
	c.dialog("C: RSET\nS: 250\nC: MAIL FROM:<a\xff@b> SMTPUTF8\nS: 501")
}

// A transfer that does not finish within the grace does not hold up a stop.
func TestStopEndsAStuckTransfer(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.Grace = 50 * time.Millisecond })
	for _, command := range []string{"DATA\r\nhello", "BDAT 9 LAST\r\nhello", "BDAT 5\r\nhello"} {
		c := r.dial()
		c.dialog(envelope)
		c.send(command)
	}
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("stopped after %v", d)
	}
	if n := len(r.store.List("mbx-1")); n != 0 {
		t.Errorf("%d messages", n)
	}
}

// A sender that pipelines may judge by any of the answers: where the cause is
// temporary, what was refused as its consequence is refused temporarily too.
func TestTemporaryTroubleStaysTemporary(t *testing.T) {
	t.Parallel()
	full := fmt.Errorf("low: %w", journal.ErrDiskFull)
	for name, tc := range map[string]struct {
		room   error
		script string
	}{
		"no room, DATA":         {full, "C: MAIL FROM:<>\nC: RCPT TO:<mbx-1@z>\nC: DATA\nS: 452 4.3.1\nS: 452 4.3.1\nS: 452 4.3.1"},
		"no room, BDAT":         {full, "C: MAIL FROM:<>\nC: RCPT TO:<mbx-1@z>\nC: BDAT 2\nC: \nC: BDAT 4 LAST\nC: ab\nS: 452\nS: 452\nS: 452\nS: 452"},
		"new mailbox, DATA":     {nil, "C: MAIL FROM:<>\nC: RCPT TO:<new@z>\nC: DATA\nS: 250\nS: 451 4.1.1\nS: 451 4.1.1"},
		"suspended, BDAT":       {nil, "C: MAIL FROM:<>\nC: RCPT TO:<suspended@z>\nC: BDAT 4 LAST\nC: ab\nS: 250\nS: 450\nS: 450"},
		"fails at first chunk":  {nil, "C: MAIL FROM:<>\nC: RCPT TO:<badkey@z>\nC: BDAT 2\nC: \nC: BDAT 2\nC: \nC: BDAT 4 LAST\nC: ab\nS: 250\nS: 250\nS: 451 4.3.0\nS: 451 4.3.0\nS: 451 4.3.0"},
		"over with a new MAIL":  {nil, "C: MAIL FROM:<>\nC: RCPT TO:<badkey@z>\nC: BDAT 2 LAST\nC: \nC: MAIL FROM:<>\nC: RCPT TO:<nobody@z>\nC: DATA\nS: 250\nS: 250\nS: 451\nS: 250\nS: 550\nS: 554"},
		"permanent stays":       {nil, "C: MAIL FROM:<>\nC: RCPT TO:<nobody@z>\nC: DATA\nS: 250\nS: 550\nS: 554"},
		"over with RSET":        {nil, "C: MAIL FROM:<>\nC: RCPT TO:<new@z>\nC: RSET\nC: DATA\nS: 250\nS: 451\nS: 250\nS: 503"},
		"over with the next":    {nil, "C: MAIL FROM:<>\nC: RCPT TO:<new@z>\nC: RSET\nC: MAIL FROM:<>\nC: RCPT TO:<nobody@z>\nC: DATA\nS: 250\nS: 451\nS: 250\nS: 250\nS: 550\nS: 554"},
		"one recipient is fine": {nil, "C: MAIL FROM:<>\nC: RCPT TO:<new@z>\nC: RCPT TO:<mbx-1@z>\nC: BDAT 2 LAST\nC: \nS: 250\nS: 451\nS: 250\nS: 250 2.0.0 stored"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, nil)
			c := r.dial()
			c.dialog("S: 220\nC: EHLO x\nS: 250-")
			r.store.set(nil, tc.room, nil)
			c.dialog(tc.script)
			r.store.set(nil, nil, nil)
			c.dialog("C: RSET\nS: 250\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: x\nC: .\nS: 250 2.0.0 stored")
		})
	}
}

// Answers do not wait for a command or chunk that is not there yet.
func TestAnswersDoNotWait(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial()
	c.dialog("S: 220\nC: EHLO x\nS: 250-")
	c.send("NOOP\r\nNO")
	c.expect("250")
	c.send("OP\r\nMAIL FROM:<>\r\nRCPT TO:<mbx-1@z>\r\nBDAT 2\r\nabBDAT 5 LAST\r\nc")
	for range 4 {
		c.expect("250")
	}
	c.send("defgDATA\r\n")
	c.expect("250 2.0.0 stored")
}

func TestControlCharactersInAddresses(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"<a\rb@c>", "<\"a\rb\"@c>", "<\"a\\\rX-Evil: y\"@c>", "<\"\\\x00\"@c>", "<@\x01:a@b>", "<\"\\\x7f\"@c>", "<\"a\\"} {
		if a, _, err := parsePath(p); err == nil {
			t.Errorf("%q: accepted as %q", p, a)
		}
	}
	if a, _, err := parsePath(`<"a\"b\\"@c>`); err != nil || a != `"a\"b\\"@c` {
		t.Errorf("%q, %v", a, err)
	}
}

// Lines beyond all bounds are errors like others: the session ends.
func TestLongLinesEnd(t *testing.T) {
	t.Parallel()
	for _, before := range []string{"S: 220\n", envelope + "C: BDAT 2\nC: \nS: 250\n"} {
		r := start(t, func(o *Options) { o.MaxErrors = 4 })
		c := r.dial()
		c.dialog(before)
		for range 4 {
			c.dialog("C: " + strings.Repeat("x", 5000) + "\nS: 500")
		}
		c.expect("421 4.7.0")
		c.closed()
	}
}

// A message in chunks is a transfer under way between its chunks too.
func TestStopLetsChunksFinish(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.Grace = 5 * time.Second })
	idle, busy := r.dial(), r.dial()
	idle.expect("220")
	busy.dialog(envelope)
	busy.send("BDAT 3\r\nabc")
	busy.expect("250 2.0.0 chunk")
	done := make(chan error, 1)
	go func() { done <- r.stop() }()
	idle.expect("421")
	busy.send("BDAT 3\r\ndef")
	busy.expect("250 2.0.0 chunk")
	busy.send("BDAT 3 LAST\r\nghi")
	busy.expect("250 2.0.0 stored")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, got := r.plaintext("mbx-1", 0); len(got) != 1 || got[0] != "abcdefghi" {
		t.Errorf("stored %q", got)
	}
}

// A defect met in one session costs that session, not the node.
func TestPanicEndsOneSession(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	s := New(Options{Host: "mx", Store: noStore{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	s.newSession = func(*conn) smtp.Session { return &panicker{} }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	r := &rig{t: t, addr: l.Addr().String()}
	bystander := r.dial()
	bystander.expect("220")
	c := r.dial()
	c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<a@b>\nS: 250\nC: DATA\nS: 354\nC: secret content")
	io.Copy(io.Discard, c.r)
	bystander.dialog("C: NOOP\nS: 250")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := log.String(); !strings.Contains(got, "deliver") || strings.Contains(got, "secret content") {
		t.Errorf("log %q", got)
	}
}

type panicker struct{ sink }

func (*panicker) Data(r io.Reader) error {
	var b [5]byte
	io.ReadFull(r, b[:])
	var none []int
	return fmt.Errorf("%d", none[len(b)])
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// No octet of a message or its envelope stands readable on the disk or in the log:
// of complete, refused, cut-off and large messages alike.
func TestNoPlaintextAtRest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	j, err := journal.Open(dir, journal.Options{InlineMax: 5000, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var log lockedBuffer
	r := start(t, func(o *Options) {
		o.Store, o.Log = journalStore{j}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	const mark = "PLAINTEXT-OF-A-JOURNAL-REPORT"
	for _, size := range []int{1, 5000} {
		body := strings.Repeat("Subject: "+mark+"\r\n", size)
		c := r.dial()
		c.dialog(envelope + "C: DATA\nS: 354")
		c.send(body + ".\r\n")
		c.expect("250")
		c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354")
		c.send(body)
		c.Close()
	}
	waitFor(t, func() bool { return strings.Count(log.String(), "mail not stored") == 2 })
	files := 0
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(p)
		for _, s := range []string{mark, "journal@example.org", "X-Msgw-Id", "AGE-SECRET-KEY", password} {
			if bytes.Contains(b, []byte(s)) {
				t.Errorf("%s holds %q", p, s)
			}
		}
		return err
	})
	if files != 2 { // a segment and a body of its own: what was cut off is gone
		t.Errorf("%d files", files)
	}
	for _, s := range []string{mark, "AGE-SECRET-KEY", password} {
		if strings.Contains(log.String(), s) {
			t.Errorf("the log holds %q", s)
		}
	}
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for range 500 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("did not come")
}

// Many senders of large messages cost a bounded amount of memory each.
func TestMemoryOfManySenders(t *testing.T) {
	r := start(t, func(o *Options) { o.Limits.PerAddress = 100 })
	const senders, size = 64, 8 << 20
	line := strings.Repeat("x", 998) + "\r\n"
	var most atomic.Uint64
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most.Store(max(most.Load(), m.HeapInuse))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	var wg sync.WaitGroup
	for range senders {
		c := r.dial()
		wg.Go(func() {
			c.dialog(envelope + "C: DATA\nS: 354")
			for n := 0; n < size; n += len(line) {
				c.send(line)
			}
			c.send(".\r\n")
			c.expect("250")
		})
	}
	wg.Wait()
	close(stop)
	watcher.Wait()
	if n := len(r.store.List("mbx-1")); n != senders {
		t.Errorf("%d messages", n)
	}
	if mib := most.Load() >> 20; mib > 128 {
		t.Errorf("%d MiB of heap for %d senders of %d MiB", mib, senders, size>>20)
	} else {
		t.Logf("%d MiB of heap", mib)
	}
}
