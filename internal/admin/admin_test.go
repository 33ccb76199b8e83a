package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fake is a Node that answers or refuses.
type fake struct {
	Node
	err error
	got any
}

func (f *fake) Status(context.Context) (Status, error) { return Status{Node: "a", MX: []MX{}}, f.err }

func (f *fake) CreateMailbox(_ context.Context, r CreateMailbox) (Credentials, error) {
	f.got = r
	return Credentials{ID: r.ID, Password: "<&>\"\\ "}, f.err
}

func (f *fake) SetMailboxStatus(_ context.Context, id, status string) (Change, error) {
	f.got = id + " " + status
	return Change{}, f.err
}

// serve runs a socket in a directory whose path is longer than a socket's may be.
func serve(t *testing.T, n Node) (*Client, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir, "msgw.sock")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Handler(n, slog.New(slog.DiscardHandler))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return NewClient(dir, "msgw.sock"), dir
}

func TestSocket(t *testing.T) {
	t.Parallel()
	f := &fake{}
	c, dir := serve(t, f)
	if fi, err := os.Stat(filepath.Join(dir, "msgw.sock")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", fi.Mode(), err)
	}
	if s, err := c.Status(t.Context()); err != nil || s.Node != "a" {
		t.Errorf("%+v, %v", s, err)
	}
	cr, err := c.CreateMailbox(t.Context(), CreateMailbox{ID: "x", Description: "d"})
	if err != nil || cr.Password != "<&>\"\\ " || f.got != (CreateMailbox{ID: "x", Description: "d"}) {
		t.Errorf("%+v, %v, %v", cr, err, f.got)
	}
	if _, err := c.SetMailboxStatus(t.Context(), "a/b c", "suspended"); err != nil || f.got != "a/b c suspended" {
		t.Errorf("%v, %v", f.got, err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	f := &fake{err: &Error{Status: http.StatusConflict, Message: "no", Hint: "try", Password: "p", ID: "i"}}
	c, _ := serve(t, f)
	var e *Error
	if _, err := c.Status(t.Context()); !errors.As(err, &e) || *e != *f.err.(*Error) {
		t.Errorf("%+v", err)
	}
	f.err = errors.New("trouble")
	if _, err := c.Status(t.Context()); !errors.As(err, &e) || e.Status != 500 || e.Message != "trouble" {
		t.Errorf("%+v", err)
	}
	// What the node does not know is refused, not ignored.
	if _, err := ask[Change](t.Context(), c, "POST", "/v1/mailboxes", map[string]string{"idd": "x"}); !errors.As(err, &e) || e.Status != 400 {
		t.Errorf("unknown key: %v", err)
	}
	if _, err := ask[Change](t.Context(), c, "POST", "/v1/mailboxes", strings.Repeat("x", maxRequest)); !errors.As(err, &e) || e.Status != 400 {
		t.Errorf("huge request: %v", err)
	}
	if _, err := NewClient(t.TempDir(), "msgw.sock").Status(t.Context()); !errors.As(err, &e) || e.Hint == "" || !strings.Contains(e.Message, "no node is running") {
		t.Errorf("nobody there: %v", err)
	}
}
