package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// maxRequest bounds what the socket reads of one request.
const maxRequest = 1 << 20

// Handler serves n.
func Handler(n Node, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	get(mux, "GET /v1/status", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Status(ctx) })
	get(mux, "GET /v1/dns", log, func(ctx context.Context, r *http.Request) (any, error) {
		return n.DNS(ctx, r.URL.Query().Get("others") == "true")
	})
	get(mux, "GET /v1/mailboxes", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Mailboxes(ctx) })
	get(mux, "GET /v1/mailboxes/{id}", log, func(ctx context.Context, r *http.Request) (any, error) {
		return n.Mailbox(ctx, r.PathValue("id"))
	})
	get(mux, "DELETE /v1/mailboxes/{id}", log, func(ctx context.Context, r *http.Request) (any, error) {
		return n.DeleteMailbox(ctx, r.PathValue("id"), r.URL.Query().Get("cut_off"))
	})
	post(mux, "POST /v1/mailboxes", log, func(ctx context.Context, _ *http.Request, b CreateMailbox) (any, error) {
		return n.CreateMailbox(ctx, b)
	})
	post(mux, "POST /v1/mailboxes/{id}/password", log, func(ctx context.Context, r *http.Request, b ChangePassword) (any, error) {
		return n.ChangePassword(ctx, r.PathValue("id"), b)
	})
	post(mux, "POST /v1/mailboxes/{id}/reset", log, func(ctx context.Context, r *http.Request, b ResetPassword) (any, error) {
		return n.ResetPassword(ctx, r.PathValue("id"), b)
	})
	post(mux, "POST /v1/mailboxes/{id}/status", log, func(ctx context.Context, r *http.Request, status string) (any, error) {
		return n.SetMailboxStatus(ctx, r.PathValue("id"), status)
	})
	post(mux, "POST /v1/nodes/{name}/weight", log, func(ctx context.Context, r *http.Request, w uint32) (any, error) {
		return n.SetWeight(ctx, r.PathValue("name"), w)
	})
	post(mux, "POST /v1/nodes/{name}/drain", log, func(ctx context.Context, r *http.Request, d SetDrain) (any, error) {
		return n.SetDrain(ctx, r.PathValue("name"), d)
	})
	post(mux, "POST /v1/nodes/{name}/adopt", log, func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return n.Adopt(ctx, r.PathValue("name"))
	})
	post(mux, "POST /v1/mailboxes/{id}/policy", log, func(ctx context.Context, r *http.Request, policy string) (any, error) {
		return n.SetMailboxPolicy(ctx, r.PathValue("id"), policy)
	})
	post(mux, "POST /v1/mailboxes/{id}", log, func(ctx context.Context, r *http.Request, m SetMailbox) (any, error) {
		return n.SetMailbox(ctx, r.PathValue("id"), m)
	})
	get(mux, "GET /v1/restrictions", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Restrictions(ctx) })
	post(mux, "POST /v1/restrictions", log, func(ctx context.Context, _ *http.Request, r Restrictions) (any, error) {
		return n.SetRestrictions(ctx, r)
	})
	get(mux, "GET /v1/copies", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Copies(ctx) })
	post(mux, "POST /v1/copies", log, func(ctx context.Context, _ *http.Request, c CopySettings) (any, error) {
		return n.SetCopies(ctx, c)
	})
	certificates(mux, n, log)
	post(mux, "POST /v1/acme", log, func(ctx context.Context, _ *http.Request, a ACME) (any, error) { return n.SetACME(ctx, a) })
	get(mux, "GET /v1/ca", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.CA(ctx) })
	post(mux, "POST /v1/invites", log, func(ctx context.Context, _ *http.Request, i Invite) (any, error) { return n.Invite(ctx, i) })
	zoneRoutes(mux, n, log)
	journalRoutes(mux, n, log)
	disasterRoutes(mux, n, log)
	delegatedRoutes(mux, n, log)
	mux.HandleFunc("POST /v1/backup", func(w http.ResponseWriter, r *http.Request) { sendBackup(w, r, n, log) })
	return mux
}

func get(mux *http.ServeMux, pattern string, log *slog.Logger, f func(context.Context, *http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r.Context(), r)
		answer(w, pattern, log, out, err)
	})
}

func post[T any](mux *http.ServeMux, pattern string, log *slog.Logger, f func(context.Context, *http.Request, T) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in T
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil {
			answer(w, pattern, log, nil, Errorf(http.StatusBadRequest, "", "request does not parse: %v", err))
			return
		}
		out, err := f(r.Context(), r, in)
		answer(w, pattern, log, out, err)
	})
}

func answer(w http.ResponseWriter, pattern string, log *slog.Logger, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		e := asError(err)
		log.Info("operator's request refused", "request", pattern, "err", err)
		w.WriteHeader(e.Status)
		out = e
	}
	if err := json.NewEncoder(w).Encode(out); err != nil {
		log.Debug("answer not taken", "request", pattern, "err", err)
	}
}

func asError(err error) *Error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Status: http.StatusInternalServerError, Message: err.Error()}
	}
	return e
}

// atSocket calls f with a path of the socket that is short enough for the kernel,
// however long the directory's is (a socket's path has room for 107 octets).
func atSocket(dir, name string, f func(path string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(filepath.Join("/proc/self/fd", fmt.Sprint(d.Fd()), name))
}

// Listen makes the socket name in dir, replacing what a crash left. The caller
// holds the lock of the directory.
func Listen(dir, name string) (net.Listener, error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var l net.Listener
	err := atSocket(dir, name, func(path string) error {
		ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		ul.SetUnlinkOnClose(false) // its path ends with this call
		l = ul
		return os.Chmod(path, 0o600)
	})
	return l, err
}

// Serve runs h on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}
