package pop3d

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// watched is an archive that takes any password but "no", keeps its maildrop, and
// does not stand a login in the clear. Users "busy" and "broken" cannot log in.
type watched struct {
	t      *testing.T
	secure bool
	drop   *maildrop
}

func (w *watched) Login(_ context.Context, user, password string) (Maildrop, error) {
	if !w.secure {
		w.t.Errorf("login of %q in the clear", user)
	}
	switch {
	case password == "no":
		return nil, ErrCredentials
	case user == "busy":
		return nil, ErrInUse
	case user == "broken":
		return nil, errors.New("out of order")
	}
	return w.drop, nil
}

var fuzzBodies = []string{"abc\r\n", "A: b\r\n\r\n.\r\n..\r\nc", "\n.\n.\r\n.\n", "", "A\nB: c\n\n1\n2\n", "\r\r\n\r\n\r.\r"}

// FuzzSession lets a stranger say anything, and checks against a model that is
// written to be plain: the session ends, with the answers that belong there and
// nothing between or behind them; nobody logs in in the clear; what was marked when
// QUIT was said is deleted, and nothing else ever is.
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
		"USER a\r\nPASS b\r\nRETR 5\r\nTOP 5 0\r\nTOP 5 1\r\nRETR 6\r\nTOP 6 0\r\nTOP 6 1\r\nTOP 3 1\r\nDELE 6\r\nDELE 6\r\nDELE 5\r\nLIST\r\nUIDL\r\nLIST 6\r\nQUIT\r\nDELE 1\r\n",
		"USER a\r\nPASS b\r\nDELE 2\r\nSTAT\r\nRSET\r\nSTAT\r\n",
		"USER busy\r\nPASS b\r\nUSER broken\r\nPASS b\r\nUSER a\r\nPASS b\r\nUSER a\r\nSTLS\r\nDELE 1\r\nQUIT 1\r\n QUIT\r\n",
		"AUTH PLAIN\r\nAGE\rAYg==\r\nAUTH plain  AGEAYg==\r\nDELE 3\r\nQU\u0131T\r\n\xc5\xbfTAT\r\nQUIT",
	} {
		f.Add([]byte(in), false)
		f.Add([]byte(in), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, secure bool) {
		drop := newMaildrop(fuzzBodies...)
		c := &tape{in: bytes.NewReader(in), keep: true}
		play(quietServer(&watched{t, secure, drop}), c, secure)
		m := &reference{t: t, in: in, out: c.out.String(), secure: secure, drop: drop}
		m.run()
		if deletes, _ := drop.state(); !reflect.DeepEqual(deletes, m.deletes) {
			t.Fatalf("deleted %v, expected %v", deletes, m.deletes)
		}
		if m.loggedIn != (drop.closed == 1) {
			t.Fatalf("logged in: %v, maildrop closed %d times", m.loggedIn, drop.closed)
		}
	})
}
