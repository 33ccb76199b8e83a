package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	user     = "mbx-2a20342e96294505a35eb5c8364eb67c"
	password = "qn5x(/.B9M~PsZ \"A92f]VYbIG`q{!1^[8"
)

// drop is a small POP3 server that does as it is told.
type drop struct {
	messages [][]byte
	stls     bool              // clear at first
	say      map[string]string // command line, or "greeting" -> all of the response, without the last CRLF
	hang     map[string]func() // at which nothing is said any more; called when it is reached
	sloppy   bool              // says something in clear right behind the response to STLS
	delay    time.Duration     // before each line

	cfg Config // to reach it

	mu      sync.Mutex
	log     []string
	deleted []int
}

var server, roots = func() (*tls.Config, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"msgw1.example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}()

func (d *drop) start(t *testing.T) *drop {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.cfg = Config{Address: l.Addr().String(), TLS: &tls.Config{RootCAs: roots, ServerName: "msgw1.example.org"},
		STLS: d.stls, User: user, Password: password, Timeout: 10 * time.Second}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				d.serve(ctx, c)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	return d
}

func (d *drop) serve(ctx context.Context, c net.Conn) {
	if !d.stls {
		c = tls.Server(c, server)
	}
	r := bufio.NewReader(c)
	var marked []int
	line := "greeting"
	for {
		good := "+OK"
		verb, arg, _ := strings.Cut(line, " ")
		n, _ := strconv.Atoi(arg)
		switch verb {
		case "STAT":
			sum := 0
			for _, m := range d.messages {
				sum += len(m)
			}
			good = fmt.Sprintf("+OK %d %d", len(d.messages), sum)
		case "LIST", "UIDL":
			for i, m := range d.messages {
				if verb == "LIST" {
					good += fmt.Sprintf("\r\n%d %d", i+1, len(m))
				} else {
					good += fmt.Sprintf("\r\n%d id-%d", i+1, i+1)
				}
			}
			good += "\r\n."
		case "RETR":
			good = "+OK\r\n" + stuffed(d.messages[n-1]) + "."
		case "DELE":
			marked = append(marked, n)
		case "PASS":
			if arg != password {
				good = "-ERR [AUTH] no"
			}
		case "CAPA":
			good = "+OK\r\nUIDL\r\nSASL PLAIN\r\n..odd\r\n."
		}
		if hang, ok := d.hang[line]; ok {
			hang()
			<-ctx.Done()
			return
		}
		if said, ok := d.say[line]; ok {
			if good = said; good == "" {
				return
			}
		}
		if verb == "QUIT" && strings.HasPrefix(good, "+OK") {
			d.mu.Lock()
			d.deleted = append(d.deleted, marked...)
			d.mu.Unlock()
		}
		if d.sloppy && verb == "STLS" {
			good += "\r\n+OK"
		}
		pieces := []string{good + "\r\n"}
		if d.delay > 0 {
			pieces = strings.SplitAfter(pieces[0], "\n")
		}
		for _, p := range pieces {
			time.Sleep(d.delay)
			if _, err := io.WriteString(c, p); err != nil {
				return
			}
		}
		if verb == "QUIT" {
			return
		}
		if verb == "STLS" {
			c = tls.Server(c, server)
			r = bufio.NewReader(c)
		}
		s, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(s, "\r\n")
		d.mu.Lock()
		d.log = append(d.log, line)
		d.mu.Unlock()
	}
}

// stuffed is a message that ends with CRLF, or is empty, as RFC 1939 section 3
// wants it.
func stuffed(msg []byte) string {
	s := strings.ReplaceAll(string(msg), "\r\n.", "\r\n..")
	if strings.HasPrefix(s, ".") {
		s = "." + s
	}
	return s
}

func (d *drop) said() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

func (d *drop) gone() []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.deleted)
}

func three() [][]byte {
	return [][]byte{[]byte("a\r\n"), []byte("bb\r\n"), []byte("ccc\r\n")}
}

func keep(string, []byte) error { return nil }

func TestFetch(t *testing.T) {
	t.Parallel()
	messages := [][]byte{
		[]byte("Subject: one\r\n\r\n.\r\n..\r\n.foo\r\n"),
		nil,
		[]byte(".\r\n"),
		[]byte("\r\n"),
		[]byte("bare\n.\n.\r\nlf\n\r\n"),
		[]byte("bare\r.\r\r.\r\r\n.\r\r\n"),
		[]byte("nul\x00\xff\r\n"),
		append(bytes.Repeat([]byte("x"), 300_000), "\r\n"...),
		bytes.Repeat([]byte("0123456789.\r\n.\r\n"), 50_000),
	}
	for _, stls := range []bool{false, true} {
		for _, remove := range []bool{false, true} {
			d := (&drop{messages: messages, stls: stls}).start(t)
			var got [][]byte
			res, err := Fetch(context.Background(), d.cfg, remove, func(uidl string, msg []byte) error {
				if want := fmt.Sprintf("id-%d", len(got)+1); uidl != want {
					t.Errorf("got %s, want %s", uidl, want)
				}
				got = append(got, msg)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			want := Result{Listed: len(messages), Fetched: len(messages)}
			for i, m := range messages {
				want.Octets += int64(len(m))
				if !bytes.Equal(got[i], m) {
					t.Errorf("message %d: %.60q, want %.60q", i+1, got[i], m)
				}
			}
			if remove {
				want.Deleted = len(messages)
			}
			if res != want || len(d.gone()) != want.Deleted {
				t.Errorf("STLS %v: got %+v, want %+v; gone: %v", stls, res, want, d.gone())
			}
			said := d.said()
			if i := slices.Index(said, "PASS "+password); i < 0 || said[len(said)-1] != "QUIT" || stls != slices.Contains(said, "STLS") {
				t.Errorf("said %q", said)
			}
		}
	}
}

// What is not handed over or not taken stays, and the others go.
func TestFetchLeavesSome(t *testing.T) {
	t.Parallel()
	d := (&drop{messages: three(), say: map[string]string{"RETR 1": "-ERR [SYS/TEMP] not now"}}).start(t)
	full := errors.New("archive full")
	res, err := Fetch(context.Background(), d.cfg, true, func(uidl string, _ []byte) error {
		if uidl == "id-2" {
			return full
		}
		return nil
	})
	var e *Error
	if !errors.As(err, &e) || *e != (Error{"RETR", "SYS/TEMP", "not now"}) || !strings.Contains(err.Error(), "id-1") {
		t.Errorf("got %v", err)
	}
	if want := (Result{Listed: 3, Fetched: 2, Octets: 9, Deleted: 1}); res != want || !slices.Equal(d.gone(), []int{3}) {
		t.Errorf("got %+v, gone %v", res, d.gone())
	}
	d = (&drop{messages: three()}).start(t)
	res, err = Fetch(context.Background(), d.cfg, true, func(uidl string, _ []byte) error { return full })
	if !errors.Is(err, full) || res.Deleted != 0 || res.Fetched != 3 || len(d.gone()) != 0 {
		t.Errorf("nothing taken: %+v, %v", res, err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		at, say string
		want    Error
	}{
		{"greeting", "-ERR [SYS/TEMP] starting", Error{"greeting", "SYS/TEMP", "starting"}},
		{"USER " + user, "-ERR no TLS, no USER", Error{"USER", "", "no TLS, no USER"}},
		{"PASS " + password, "-ERR [AUTH] wrong", Error{"PASS", "AUTH", "wrong"}},
		{"PASS " + password, "-ERR [in-use] locked", Error{"PASS", "IN-USE", "locked"}},
		{"PASS " + password, "-ERR [broken", Error{"PASS", "", "[broken"}},
		{"PASS " + password, "-ERR", Error{"PASS", "", ""}},
		{"STAT", "-ERR no", Error{"STAT", "", "no"}},
		{"LIST", "-ERR no", Error{"LIST", "", "no"}},
		{"UIDL", "-ERR no", Error{"UIDL", "", "no"}},
		{"DELE 1", "-ERR no", Error{"DELE", "", "no"}},
		{"QUIT", "-ERR [SYS/PERM] some not deleted", Error{"QUIT", "SYS/PERM", "some not deleted"}},
	} {
		d := (&drop{messages: three(), say: map[string]string{test.at: test.say}}).start(t)
		res, err := Fetch(context.Background(), d.cfg, true, keep)
		var e *Error
		if !errors.As(err, &e) || *e != test.want || res.Deleted != 0 || len(d.gone()) != 0 {
			t.Errorf("%s: %v, %+v", test.say, err, res)
		}
		if err != nil && (strings.Contains(err.Error(), password) || !strings.Contains(err.Error(), test.want.Code)) {
			t.Errorf("says %q", err)
		}
	}
	d := (&drop{}).start(t)
	d.cfg.Password = "wrong"
	var e *Error
	if _, err := Fetch(context.Background(), d.cfg, true, keep); !errors.As(err, &e) || e.Code != "AUTH" {
		t.Errorf("wrong password: %v", err)
	}
	d.cfg.Password = "a\r\nQUIT"
	if _, err := Fetch(context.Background(), d.cfg, true, keep); err == nil || slices.Contains(d.said(), "QUIT") {
		t.Error("password of two lines")
	}
}

func TestViolations(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		at, say string
		want    error
	}{
		{"greeting", "OK", ErrProtocol},
		{"greeting", "+OK a\rb", ErrProtocol},
		{"greeting", "+OK " + strings.Repeat("x", maxLine), ErrProtocol},
		{"greeting", "+OK " + strings.Repeat("x", 100_000), ErrProtocol},
		{"greeting", "+OK bare\n+OK", ErrProtocol},
		{"STAT", "+OK", ErrProtocol},
		{"STAT", "+OK 3", ErrProtocol},
		{"STAT", "+OK 03 12", ErrProtocol},
		{"STAT", "+OK -3 12", ErrProtocol},
		{"STAT", "+OK 2 12", ErrProtocol},
		{"STAT", "+OK 3 13", ErrProtocol},
		{"LIST", "+OK\r\n1 3\r\n2 4\r\n2 5\r\n.", ErrProtocol},
		{"LIST", "+OK\r\n1 3\r\n2 4\r\nx 5\r\n.", ErrProtocol},
		{"LIST", "+OK\r\n1 3\r\n2 4\r\n3\r\n.", ErrProtocol},
		{"LIST", "+OK\r\n0 3\r\n2 4\r\n3 5\r\n.", ErrProtocol},
		{"LIST", "+OK\r\n1 3\r\n.2 4\r\n3 5\r\n.", ErrProtocol},
		{"LIST", "+OK\r\n1 3\r\n2 4\r\n.", ErrProtocol},
		{"UIDL", "+OK\r\n1 a\r\n2 b\r\n.", ErrProtocol},
		{"UIDL", "+OK\r\n1 a\r\n2 b\r\n3 b\r\n.", ErrProtocol},
		{"UIDL", "+OK\r\n1 a\r\n2 b\r\n2 c\r\n.", ErrProtocol},
		{"UIDL", "+OK\r\n1 a\r\n2 b\r\n4 c\r\n.", ErrProtocol},
		{"UIDL", "+OK\r\n1 a\r\n2 b\r\n3\r\n.", ErrProtocol},
		{"UIDL", "+OK\r\n1 a\r\n2 b\r\n3 c d\r\n.", ErrProtocol},
		{"UIDL", "+OK\r\n1 a\r\n2 b\r\n3 " + strings.Repeat("c", 71) + "\r\n.", ErrProtocol},
		{"RETR 2", "+OK\r\nb\r\n.", ErrOctets},
		{"RETR 2", "+OK\r\nbbb\r\n.", ErrOctets},
		{"RETR 2", "+OK\r\n.b\r\n.", ErrProtocol},
		{"RETR 2", "+OK\r\nbb\r\n.\rx\r\n.", ErrProtocol},
		{"RETR 2", "+OK\r\nbb\n.", ErrOctets},
		{"RETR 2", "", io.ErrUnexpectedEOF},
		{"QUIT", "", io.ErrUnexpectedEOF},
	} {
		d := (&drop{messages: three(), say: map[string]string{test.at: test.say}}).start(t)
		res, err := Fetch(context.Background(), d.cfg, true, keep)
		verb, _, _ := strings.Cut(test.at, " ")
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), verb) || res.Deleted != 0 || test.at != "QUIT" && len(d.gone()) != 0 {
			t.Errorf("%s: %.60q: got %v, %+v", test.at, test.say, err, res)
		}
	}
}

func TestExtraInListing(t *testing.T) {
	t.Parallel()
	d := (&drop{messages: three(), say: map[string]string{"STAT": "+OK 3 12 octets", "LIST": "+OK\r\n3 5 x\r\n1 3 y\r\n2 4\r\n."}}).start(t)
	var order []string
	if _, err := Fetch(context.Background(), d.cfg, true, func(uidl string, _ []byte) error {
		order = append(order, uidl)
		return nil
	}); err != nil || !slices.Equal(order, []string{"id-3", "id-1", "id-2"}) {
		t.Errorf("got %v, %v", order, err)
	}
}

func TestWaitsEnd(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"greeting", "PASS " + password, "LIST", "RETR 2", "QUIT"} {
		d := (&drop{messages: three(), hang: map[string]func(){at: func() {}}}).start(t)
		d.cfg.Timeout = 200 * time.Millisecond
		if res, err := Fetch(context.Background(), d.cfg, true, keep); !errors.Is(err, os.ErrDeadlineExceeded) || res.Deleted != 0 {
			t.Errorf("%.4s: %v, %+v", at, err, res)
		}
		ctx, cancel := context.WithCancel(context.Background())
		d = (&drop{messages: three(), hang: map[string]func(){at: cancel}}).start(t)
		if res, err := Fetch(ctx, d.cfg, true, keep); !errors.Is(err, context.Canceled) || res.Deleted != 0 {
			t.Errorf("%.4s: %v, %+v", at, err, res)
		}
	}
	// In the midst of a message, too.
	d := (&drop{messages: three(), say: map[string]string{"RETR 2": "+OK\r\nb"}}).start(t)
	d.cfg.Timeout = 200 * time.Millisecond
	if _, err := Fetch(context.Background(), d.cfg, true, keep); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("message cut: %v", err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	d := (&drop{stls: true, sloppy: true}).start(t)
	if _, err := Dial(context.Background(), d.cfg); !errors.Is(err, ErrProtocol) {
		t.Errorf("text in clear behind STLS: %v", err)
	}
	d = (&drop{stls: true, say: map[string]string{"STLS": "-ERR no"}}).start(t)
	var e *Error
	if _, err := Fetch(context.Background(), d.cfg, true, keep); !errors.As(err, &e) || len(d.said()) != 1 {
		t.Errorf("STLS refused: %v, said %q", err, d.said())
	}
	for _, stls := range []bool{false, true} {
		d = (&drop{stls: stls}).start(t)
		d.cfg.TLS = &tls.Config{RootCAs: roots} // the name is 127.0.0.1 now
		var bad *tls.CertificateVerificationError
		if _, err := Dial(context.Background(), d.cfg); !errors.As(err, &bad) {
			t.Errorf("certificate for another host: %v", err)
		}
		d.cfg.TLS = nil
		if _, err := Dial(context.Background(), d.cfg); !errors.As(err, &bad) {
			t.Errorf("untrusted certificate: %v", err)
		}
	}
	if _, err := Dial(context.Background(), Config{Address: "127.0.0.1"}); err == nil {
		t.Error("address without port")
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	d := (&drop{}).start(t)
	c, err := Dial(context.Background(), d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := c.Capabilities()
	if want := []string{"UIDL", "SASL PLAIN", ".odd"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
	c, err = Dial(context.Background(), (&drop{say: map[string]string{"CAPA": "+OK\r\n" + strings.Repeat("X\r\n", 101) + "."}}).start(t).cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Capabilities(); !errors.Is(err, ErrProtocol) {
		t.Errorf("too many: %v", err)
	}
}

func TestTooLargeToKeep(t *testing.T) {
	t.Parallel()
	d := (&drop{say: map[string]string{"STAT": fmt.Sprintf("+OK 1 %d", maxMessage+1), "LIST": fmt.Sprintf("+OK\r\n1 %d\r\n.", maxMessage+1), "UIDL": "+OK\r\n1 a\r\n."}}).start(t)
	if _, err := Fetch(context.Background(), d.cfg, true, keep); err == nil || slices.Contains(d.said(), "RETR 1") {
		t.Errorf("%v, said %q", err, d.said())
	}
}

// Each wait has its bound, not all of them together.
func TestSlowIsNotSilent(t *testing.T) {
	t.Parallel()
	d := (&drop{messages: [][]byte{bytes.Repeat([]byte("line\r\n"), 25)}, delay: 20 * time.Millisecond}).start(t)
	d.cfg.Timeout = 400 * time.Millisecond
	start := time.Now()
	if _, err := Fetch(context.Background(), d.cfg, true, keep); err != nil || time.Since(start) < 500*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	d = (&drop{messages: make([][]byte, 25), delay: 20 * time.Millisecond}).start(t)
	d.cfg.Timeout = 400 * time.Millisecond
	c, err := Dial(context.Background(), d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if list, err := c.Messages(); err != nil || len(list) != 25 {
		t.Errorf("%d messages: %v", len(list), err)
	}
}

func TestUnstuff(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		in, want string
		left     string
		err      error
	}{
		{".\r\nrest", "", "rest", nil},
		{"..\r\n.\r\n", ".\r\n", "", nil},
		{"a\r\n...b\r\n.\r\n+OK", "a\r\n..b\r\n", "+OK", nil},
		{"a\n.\r\n.b\r\n.\r\n", "a\n.\r\n.b\r\n", "", ErrProtocol},
		{"a\n.\r\n..b\r\n.\r\n", "a\n.\r\n.b\r\n", "", nil},
		{".a\r\n.\r\n", "a\r\n", "", ErrProtocol},
		{".\ra\r\n.\r\n", "", "", ErrProtocol},
		{"ab\r\n.\r\n", "a\r\n", "", ErrOctets},
		{"\r\n.\r\n", "a\r\n", "", ErrOctets},
		{"a\r\n.\r", "a\r\n", "", io.ErrUnexpectedEOF},
	} {
		for n := 1; n <= len(test.in); n++ {
			src := &pieces{[]byte(test.in), n}
			got, err := unstuff(src, int64(len(test.want)))
			if !errors.Is(err, test.err) || test.err == nil && (string(got) != test.want || string(src.b) != test.left) {
				t.Errorf("%q by %d: %q, left %q, %v", test.in, n, got, src.b, err)
			}
		}
	}
}

// pieces is a source of a few octets at a time.
type pieces struct {
	b []byte
	n int
}

func (p *pieces) next() ([]byte, error) {
	if len(p.b) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return p.b[:min(p.n, len(p.b))], nil
}

func (p *pieces) used(n int) { p.b = p.b[n:] }

// FuzzUnstuff checks that what was stuffed comes back, and that anything else is
// taken or refused the same however it is cut.
func FuzzUnstuff(f *testing.F) {
	for _, s := range []string{"", "\r\n", ".\r\n", "a\r\n.b\r\n..\r\n", "a\n.\nb\r\n", "\r.\r\n", "a\r\r\n.\r\n", "a\r\n.\rb\r\n.\r\n"} {
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, msg []byte, cut uint8) {
		n := int(cut)%7 + 1
		raw, rerr := unstuff(&pieces{msg, n}, int64(len(msg)))
		whole, werr := unstuff(&pieces{msg, len(msg) + 1}, int64(len(msg)))
		if !bytes.Equal(raw, whole) || (rerr == nil) != (werr == nil) {
			t.Fatalf("cut: %q, %v; whole: %q, %v", raw, rerr, whole, werr)
		}
		if len(msg) > 0 {
			msg = append(bytes.TrimSuffix(msg, []byte("\r\n")), "\r\n"...)
		}
		src := &pieces{[]byte(stuffed(msg) + ".\r\n+OK\r\n"), n}
		got, err := unstuff(src, int64(len(msg)))
		if err != nil || !bytes.Equal(got, msg) || string(src.b) != "+OK\r\n" {
			t.Fatalf("got %q, %v, want %q; left %q", got, err, msg, src.b)
		}
	})
}

// FuzzSession feeds what a server may say to a whole session.
func FuzzSession(f *testing.F) {
	f.Add([]byte("+OK\r\n+OK\r\n+OK\r\n+OK 1 3\r\n+OK\r\n1 3\r\n.\r\n+OK\r\n1 a\r\n.\r\n+OK\r\na\r\n.\r\n+OK\r\n"))
	f.Add([]byte("+OK\r\n+OK\r\n-ERR [AUTH] no\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		defer wg.Wait()
		defer ours.Close()
		wg.Go(func() { io.Copy(io.Discard, theirs) })
		wg.Go(func() {
			theirs.Write(in)
			theirs.Close()
		})
		c := &Conn{raw: ours, cfg: Config{User: "u", Password: "p", Timeout: time.Minute}, ended: func() error { return nil }, release: func() bool { return true }}
		c.use(ours)
		if _, err := c.response("greeting"); err != nil {
			return
		}
		if c.Login() != nil {
			return
		}
		list, err := c.Messages()
		if err != nil {
			return
		}
		for _, m := range list {
			msg, err := c.Retrieve(m)
			if err == nil && int64(len(msg)) != m.Octets {
				t.Fatalf("%d octets of %d", len(msg), m.Octets)
			}
			if err != nil {
				return
			}
		}
	})
}
