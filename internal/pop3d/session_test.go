package pop3d

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"msgw/internal/lineproto/dialog"
)

const (
	loginOfMailbox = "C: USER " + mailbox + "\nS: +OK...\nC: PASS " + password + "\nS: +OK 3 messages"
	inClear        = "S: +OK msgw POP3 server ready"
	withTLS        = inClear + "\nC: STLS\nS: +OK begin TLS\nTLS"
	afterLogin     = withTLS + "\n" + loginOfMailbox
)

func sasl(authzid, user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(authzid + "\x00" + user + "\x00" + password))
}

// three is the maildrop of the dialogues: 5, 14 and 7 octets as sent.
func three() *maildrop {
	return newMaildrop("abc\r\n", "A: b\r\n\r\n1\r\n2\r\n", ".\r\n..")
}

// Every verb in every state gives +OK exactly where it belongs.
func TestStates(t *testing.T) {
	t.Parallel()
	const clear, secure, transaction = 1, 2, 4
	verbs := []struct {
		line   string
		allow  int
		answer string // the rest of it
	}{
		{"CAPA", clear | secure | transaction, "body"},
		{"STLS", clear, ""},
		{"USER " + mailbox, secure, ""},
		{"PASS " + password, 0, ""}, // without USER
		{"AUTH PLAIN " + sasl("", mailbox, password), secure, ""},
		{"STAT", transaction, ""},
		{"LIST", transaction, "body"},
		{"LIST 1", transaction, ""},
		{"UIDL", transaction, "body"},
		{"UIDL 1", transaction, ""},
		{"RETR 1", transaction, "body"},
		{"TOP 1 0", transaction, "body"},
		{"DELE 1", transaction, ""},
		{"RSET", transaction, ""},
		{"NOOP", transaction, ""},
		{"QUIT", clear | secure | transaction, "end"},
		{"APOP x y", 0, ""},
	}
	for state, opening := range map[int]string{clear: inClear, secure: withTLS, transaction: afterLogin} {
		for _, v := range verbs {
			t.Run(fmt.Sprint(state, " ", strings.Fields(v.line)), func(t *testing.T) {
				t.Parallel()
				s := start(t, three(), false)
				c := s.client(t, false)
				c.script(opening)
				c.script("C: " + strings.ToLower(v.line[:4]) + v.line[4:])
				if v.allow&state == 0 {
					c.script("S: -ERR...", "C: QUIT", "S: +OK...", "S.")
					return
				}
				c.script("S: +OK...")
				switch v.answer {
				case "body":
					if _, err := c.body(); err != nil {
						t.Error(err)
					}
				case "end":
					c.script("S.")
				}
			})
		}
	}
}

// What stands behind STLS in the clear is no command, whenever it arrives.
func TestSTLSInjection(t *testing.T) {
	t.Parallel()
	login := "USER " + mailbox + "\r\nPASS " + password + "\r\nDELE 1\r\nQUIT\r\n"
	t.Run("in one segment", func(t *testing.T) {
		t.Parallel()
		s := start(t, three(), false)
		c := s.client(t, false)
		c.script(inClear, octets("STLS\r\n"+login), "S: -ERR nothing may follow STLS before its answer", "S.")
		if got := s.tried(); got != nil {
			t.Errorf("logged in: %q", got)
		}
	})
	t.Run("after the answer", func(t *testing.T) {
		t.Parallel()
		s := start(t, three(), false)
		c := s.client(t, false)
		c.script(inClear, "C: STLS", "S: +OK begin TLS", octets(login))
		if err := tls.Client(c.Conn, clientTLS()).Handshake(); err == nil {
			t.Error("the handshake succeeded")
		}
		s.stop()
		<-s.done
		if got := s.tried(); got != nil {
			t.Errorf("logged in: %q", got)
		}
		if !strings.Contains(s.log.String(), `outcome="tls failed"`) {
			t.Errorf("log: %s", s.log)
		}
	})
}

func TestOldTLS(t *testing.T) {
	t.Parallel()
	old := func(o *Options) { o.TLS.MinVersion = tls.VersionTLS10 }
	behind := func(o *Options) {
		config := o.TLS.Clone()
		config.MinVersion = tls.VersionTLS10
		o.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return config, nil }
	}
	for name, change := range map[string]func(*Options){"configured": old, "chosen later": behind} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, three(), false, change)
			config := clientTLS()
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			c := s.client(t, false)
			c.Player = dialog.New(tls.Client(s.dial(true), config))
			line, err := c.read()
			if err == nil {
				t.Errorf("got %q", line)
			}
			if name == "configured" && !strings.Contains(err.Error(), "protocol version") {
				t.Errorf("not refused by the handshake: %v", err)
			}
		})
	}
}

// A password is everything behind "PASS ", and a user is passed on as it came.
func TestCredentialsAsGiven(t *testing.T) {
	t.Parallel()
	for _, password := range []string{
		password, " leading and trailing  ", `"quoted"`, "'", "pass word", "tab\tin", "grüße 密碼 🔑", "*", "a\x7fb", strings.Repeat("p", 250),
	} {
		for _, user := range []string{mailbox, mailbox + "@msgw.example.com"} {
			t.Run(fmt.Sprintf("%.10q", password), func(t *testing.T) {
				t.Parallel()
				s := start(t, three(), false)
				s.archive.password, s.archive.drops[user] = password, s.drop
				s.client(t, true).script(inClear, "C: USER "+user, "S: +OK...", "C: PASS "+password, "S: +OK 3...", "C: QUIT", "S: +OK", "S.")
				s.client(t, true).script(inClear, "C: AUTH PLAIN "+sasl("", user, password), "S: +OK 3...", "C: QUIT", "S: +OK", "S.")
				if got, want := s.tried(), []string{user + " " + password, user + " " + password}; !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

func TestLoginErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err            error
		answer, result string
	}{
		{ErrInUse, "-ERR [IN-USE]...", "in_use"},
		{fmt.Errorf("no room for the KDF: %w", ErrTemporary), "-ERR [SYS/TEMP]...", "temporary"},
		{errors.New("anything else"), "-ERR [SYS/TEMP]...", "temporary"},
	} {
		s := start(t, three(), false, func(o *Options) { o.Maildrops.(*archive).err = tt.err })
		login := []string{"C: AUTH PLAIN " + sasl("", mailbox, password), "S: " + tt.answer}
		c := s.client(t, true)
		c.script(inClear)
		c.script(login...)
		c.script(login...)
		c.script(login...)
		c.script("S.")
		if got := s.metric(t, "msgw_pop3_logins_total", tt.result); got != 3 {
			t.Errorf("%s counted %v times", tt.result, got)
		}
	}
}

func TestInUse(t *testing.T) {
	t.Parallel()
	s := start(t, three(), false)
	a, b := s.loggedIn(t), s.client(t, true)
	b.script(inClear, "C: AUTH PLAIN "+sasl("", mailbox, password), "S: -ERR [IN-USE]...")
	a.script("C: QUIT", "S: +OK") // the answer says that the lock is gone
	b.script("C: AUTH PLAIN "+sasl("", mailbox, password), "S: +OK 3...")
}

// A defect that one session meets does not lock the archive out of the maildrop, and ends
// the session in the middle of a message as any other failure does.
func TestDefectUnlocks(t *testing.T) {
	t.Parallel()
	drop := three()
	body := strings.NewReader(crlfLines(1 << 20))
	drop.open = func(_ context.Context, i int) (io.ReadCloser, error) {
		if i == 0 {
			panic("a defect")
		}
		return io.NopCloser(io.MultiReader(io.LimitReader(body, 1<<19), defect{})), nil
	}
	s := start(t, drop, false)
	c := s.loggedIn(t)
	c.script("C: DELE 3", "S: +OK...", octets("RETR 1\r\nQUIT\r\n"))
	if got, err := c.read(); err == nil {
		t.Errorf("got %q", got)
	}
	c = s.loggedIn(t)
	c.script(octets("DELE 3\r\nRETR 2\r\nQUIT\r\n"), "S: +OK...", "S: +OK message follows")
	if got, err := c.body(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d octets, and then %v", len(got), err)
	}
	s.stop()
	<-s.done
	if deletes, _ := drop.state(); deletes != nil || drop.closed != 2 {
		t.Errorf("deleted %v, closed %d times", deletes, drop.closed)
	}
	if n := strings.Count(s.log.String(), `outcome="defect of this program"`); n != 2 {
		t.Errorf("%d sessions: %s", n, s.log)
	}
}

type defect struct{}

func (defect) Read([]byte) (int, error) { panic("a defect") }

// The user name of a failed login is cut and quoted in the log.
func TestFailedLoginLog(t *testing.T) {
	t.Parallel()
	s := start(t, three(), false)
	name := "x\x1b[2J" + strings.Repeat("n", 100)
	s.client(t, true).script(inClear, "C: USER "+name, "S: +OK...", "C: PASS "+password, "S: -ERR [AUTH]...", "C: QUIT", "S: +OK", "S.")
	s.stop()
	<-s.done
	log := s.log.String()
	if !strings.Contains(log, "level=WARN") || !strings.Contains(log, strings.Repeat("n", 59)+`\"..."`) || strings.Contains(log, strings.Repeat("n", 60)) {
		t.Errorf("log: %s", log)
	}
	if strings.Contains(log, "mailbox=") {
		t.Errorf("the session line names a mailbox: %s", log)
	}
}

// metric returns the value of a metric, of the labels' values given.
func (s *site) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			if slices.Equal(have, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %v", name, labels)
	return 0
}

func TestSessionLogAndMetrics(t *testing.T) {
	t.Parallel()
	s := start(t, three(), false)
	c := s.loggedIn(t)
	for _, name := range []string{"RETR 1", "RETR 2", "TOP 3 0"} {
		c.script("C: "+name, "S: +OK...")
		if _, err := c.body(); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.metric(t, "msgw_pop3_sessions"); got != 1 {
		t.Errorf("%v sessions", got)
	}
	c.script("C: DELE 2", "S: +OK...", "C: QUIT", "S: +OK 1 messages deleted", "S.")
	s.stop()
	<-s.done
	for _, want := range []string{"level=INFO", "mailbox=" + mailbox, `tls="TLS 1.3"`, "retrieved=2", "deleted=1", "octets=19", "outcome=quit", "peer=127.0.0.1:"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("the log lacks %s: %s", want, s.log)
		}
	}
	for name, want := range map[string]float64{
		"msgw_pop3_retrieved_total": 2, "msgw_pop3_deleted_total": 1, "msgw_pop3_octets_total": 19, "msgw_pop3_sessions": 0,
	} {
		if got := s.metric(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got := s.metric(t, "msgw_pop3_logins_total", "ok"); got != 1 {
		t.Errorf("%v logins", got)
	}
}

func TestServeNeedsItsOptions(t *testing.T) {
	t.Parallel()
	if err := New(Options{}).Serve(t.Context(), nil, nil); err == nil {
		t.Error("served without TLS")
	}
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	s := start(t, three(), false, func(o *Options) { o.Limits.PerAddress = 1 })
	a := s.client(t, false)
	a.script(inClear)
	s.client(t, false).script("S: -ERR [SYS/TEMP] too many connections", "S.")
	c := s.dial(true)
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d octets in the clear where TLS is spoken", n)
	}
	c.Close()
	a.script("C: QUIT", "S: +OK", "S.")
}
