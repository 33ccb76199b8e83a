package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// Journals is what a site holds, for an operator. No password is needed but for Plain.
type Journals interface {
	// Messages calls f for every message that fits, in no particular order.
	Messages(ctx context.Context, q Query, f func(Message) error) error
	Message(ctx context.Context, id string) (Message, error)
	// Sealed returns a message as it lies on the disk: an age file.
	Sealed(ctx context.Context, id string) (io.ReadCloser, error)
	// Plain returns a message as the archive would get it. It needs the password of its
	// mailbox.
	Plain(ctx context.Context, id, password string) (io.ReadCloser, error)
	// Verify checks the hash and the framing of every message and calls f for those that
	// are damaged.
	Verify(ctx context.Context, f func(Message) error) (Verified, error)
}

// Query picks messages.
type Query struct {
	Mailbox string // empty: all
	Single  bool   // only those that the other site is not known to hold
}

// Message is what is known of a message without opening it.
type Message struct {
	ID       string    `json:"id"` // empty: damage that belongs to no message that is known
	Mailbox  string    `json:"mailbox"`
	Key      string    `json:"key"` // it is sealed to
	Received time.Time `json:"received"`
	Octets   int64     `json:"octets"` // as it came in
	Sealed   int64     `json:"sealed"` // as it lies on the disk
	SHA256   string    `json:"sha256"` // of that
	Report   bool      `json:"report"` // it carries a journal report's marker
	Copy     bool      `json:"copy"`   // it is the copy of one that the other site owns
	// Single: the other site is not known to hold it. SingleKnown: whether that is sure.
	Single      bool   `json:"single"`
	SingleKnown bool   `json:"single_known"`
	Damage      string `json:"damage,omitempty"`
	// Quarantined: it could not be read, for a reason, and is not listed since then.
	Quarantined    time.Time `json:"quarantined,omitzero"`
	QuarantinedWhy string    `json:"quarantined_why,omitempty"`
}

// Verified sums up a check.
type Verified struct {
	Messages int           `json:"messages"`
	Octets   int64         `json:"octets"`
	Damaged  int           `json:"damaged"` // messages, and places that belong to none
	Took     time.Duration `json:"took"`
}

// row is one line of an answer that is told message by message. The last row of a whole
// answer has Done or Error.
type row struct {
	Message  *Message  `json:"message,omitempty"`
	Done     bool      `json:"done,omitempty"`
	Verified *Verified `json:"verified,omitempty"`
	Error    *Error    `json:"error,omitempty"`
}

func journalRoutes(mux *http.ServeMux, n Node, log *slog.Logger) {
	rows(mux, "GET /v1/journal", log, func(r *http.Request, f func(Message) error) (*Verified, error) {
		q := r.URL.Query()
		return nil, n.Messages(r.Context(), Query{Mailbox: q.Get("mailbox"), Single: q.Get("single") != ""}, f)
	})
	rows(mux, "POST /v1/journal/verify", log, func(r *http.Request, f func(Message) error) (*Verified, error) {
		v, err := n.Verify(r.Context(), f)
		return &v, err
	})
	get(mux, "GET /v1/journal/{id}", log, func(ctx context.Context, r *http.Request) (any, error) {
		return n.Message(ctx, r.PathValue("id"))
	})
	post(mux, "POST /v1/journal/{id}/release", log, func(ctx context.Context, r *http.Request, _ struct{}) (any, error) {
		return struct{}{}, n.Release(ctx, r.PathValue("id"))
	})
	octets(mux, "GET /v1/journal/{id}/sealed", log, func(r *http.Request) (io.ReadCloser, error) {
		return n.Sealed(r.Context(), r.PathValue("id"))
	})
	octets(mux, "POST /v1/journal/{id}/plain", log, func(r *http.Request) (io.ReadCloser, error) {
		var password string
		if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxRequest)).Decode(&password); err != nil {
			return nil, Errorf(http.StatusBadRequest, "", "request does not parse: %v", err)
		}
		return n.Plain(r.Context(), r.PathValue("id"), password)
	})
}

// rows answers with a line of JSON for each message.
func rows(mux *http.ServeMux, pattern string, log *slog.Logger, f func(*http.Request, func(Message) error) (*Verified, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		e := json.NewEncoder(w)
		v, err := f(r, func(m Message) error { return e.Encode(row{Message: &m}) })
		last := row{Done: true, Verified: v}
		if err != nil {
			log.Info("operator's request refused", "request", pattern, "err", err)
			last = row{Error: asError(err)}
		}
		if err := e.Encode(last); err != nil {
			log.Debug("answer not taken", "request", pattern, "err", err)
		}
	})
}

// octets answers with a message. One that breaks off breaks the connection.
func octets(mux *http.ServeMux, pattern string, log *slog.Logger, open func(*http.Request) (io.ReadCloser, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		body, err := open(r)
		if err != nil {
			answer(w, pattern, log, nil, err)
			return
		}
		defer body.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		if _, err := io.Copy(w, body); err != nil {
			log.Warn("message not told whole", "request", pattern, "err", err)
			panic(http.ErrAbortHandler) // else the client would take it for whole
		}
	})
}

// rows reads an answer that is told message by message.
func (c *Client) rows(ctx context.Context, method, path string, f func(Message) error) (*Verified, error) {
	res, err := c.send(ctx, method, path, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	d := json.NewDecoder(res.Body)
	for {
		var r row
		switch err := d.Decode(&r); {
		case err != nil:
			return nil, fmt.Errorf("the node's answer breaks off: %w", err)
		case r.Error != nil:
			return nil, r.Error
		case r.Done:
			return r.Verified, nil
		case r.Message == nil:
			return nil, errors.New("the node's answer is of another version")
		}
		if err := f(*r.Message); err != nil {
			return nil, err
		}
	}
}

func (c *Client) Messages(ctx context.Context, q Query, f func(Message) error) error {
	v := url.Values{}
	if q.Mailbox != "" {
		v.Set("mailbox", q.Mailbox)
	}
	if q.Single {
		v.Set("single", "1")
	}
	_, err := c.rows(ctx, "GET", "/v1/journal?"+v.Encode(), f)
	return err
}

func (c *Client) Verify(ctx context.Context, f func(Message) error) (Verified, error) {
	v, err := c.rows(ctx, "POST", "/v1/journal/verify", f)
	if err != nil {
		return Verified{}, err
	}
	if v == nil {
		return Verified{}, errors.New("the node's answer is of another version")
	}
	return *v, nil
}

func (c *Client) Message(ctx context.Context, id string) (Message, error) {
	return ask[Message](ctx, c, "GET", "/v1/journal/"+url.PathEscape(id), nil)
}

func (c *Client) Sealed(ctx context.Context, id string) (io.ReadCloser, error) {
	return c.octets(ctx, "GET", "/v1/journal/"+url.PathEscape(id)+"/sealed", nil)
}

func (c *Client) Plain(ctx context.Context, id, password string) (io.ReadCloser, error) {
	return c.octets(ctx, "POST", "/v1/journal/"+url.PathEscape(id)+"/plain", password)
}

func (c *Client) octets(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	res, err := c.send(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}
