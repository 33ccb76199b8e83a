package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
)

// Client talks to the node whose state directory it names. It implements Node.
type Client struct {
	dir  string
	http *http.Client
}

var _ Node = (*Client)(nil)

// NewClient returns a client for the socket name in dir.
func NewClient(dir, name string) *Client {
	return &Client{dir, HTTPClient(dir, name)}
}

// HTTPClient returns a client whose every request goes to the socket name in dir.
func HTTPClient(dir, name string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (c net.Conn, err error) {
			err = atSocket(dir, name, func(path string) error {
				c, err = (&net.Dialer{}).DialContext(ctx, "unix", path)
				return err
			})
			return c, err
		},
		DisableKeepAlives: true,
	}}
}

// NotRunning is the Status of an Error that says that no node runs.
const NotRunning = http.StatusNotAcceptable

// send sends in, unless it is nil, and returns an answer of status 200.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://msgw"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, Errorf(NotRunning, "start it with `msgw serve`, or name its state directory with --dir", "no node is running at %s", c.dir)
	case errors.Is(err, os.ErrPermission):
		return nil, Errorf(http.StatusBadRequest, "run this as the user that the node runs as, or as root", "no permission to talk to the node at %s", c.dir)
	case err != nil:
		return nil, fmt.Errorf("talk to the node at %s: %w", c.dir, err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	e := &Error{Status: res.StatusCode}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxRequest)).Decode(e); err != nil || e.Message == "" {
		e.Message = "the node answered " + res.Status
	}
	return nil, e
}

// call sends in, unless it is nil, and decodes the answer into out.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	res, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(out)
}

func ask[T any](ctx context.Context, c *Client, method, path string, in any) (out T, err error) {
	err = c.call(ctx, method, path, in, &out)
	return out, err
}

func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, "GET", "/v1/status", nil)
}

func (c *Client) DNS(ctx context.Context, others bool) (DNS, error) {
	return ask[DNS](ctx, c, "GET", "/v1/dns?others="+strconv.FormatBool(others), nil)
}

func (c *Client) Mailboxes(ctx context.Context) ([]Mailbox, error) {
	return ask[[]Mailbox](ctx, c, "GET", "/v1/mailboxes", nil)
}

func mailboxPath(id, what string) string { return "/v1/mailboxes/" + url.PathEscape(id) + what }

func nodePath(name, what string) string { return "/v1/nodes/" + url.PathEscape(name) + what }

func (c *Client) Mailbox(ctx context.Context, id string) (Mailbox, error) {
	return ask[Mailbox](ctx, c, "GET", mailboxPath(id, ""), nil)
}

func (c *Client) Release(ctx context.Context, id string) error {
	_, err := ask[struct{}](ctx, c, "POST", "/v1/journal/"+url.PathEscape(id)+"/release", struct{}{})
	return err
}

func (c *Client) SetMailbox(ctx context.Context, id string, m SetMailbox) (Change, error) {
	return ask[Change](ctx, c, "POST", mailboxPath(id, ""), m)
}

func (c *Client) Restrictions(ctx context.Context) (Restrictions, error) {
	return ask[Restrictions](ctx, c, "GET", "/v1/restrictions", nil)
}

func (c *Client) SetRestrictions(ctx context.Context, r Restrictions) (Change, error) {
	return ask[Change](ctx, c, "POST", "/v1/restrictions", r)
}

func (c *Client) CreateMailbox(ctx context.Context, r CreateMailbox) (Credentials, error) {
	return ask[Credentials](ctx, c, "POST", "/v1/mailboxes", r)
}

func (c *Client) ChangePassword(ctx context.Context, id string, r ChangePassword) (Credentials, error) {
	return ask[Credentials](ctx, c, "POST", mailboxPath(id, "/password"), r)
}

func (c *Client) ResetPassword(ctx context.Context, id string, r ResetPassword) (Credentials, error) {
	return ask[Credentials](ctx, c, "POST", mailboxPath(id, "/reset"), r)
}

func (c *Client) SetMailboxStatus(ctx context.Context, id, status string) (Change, error) {
	return ask[Change](ctx, c, "POST", mailboxPath(id, "/status"), status)
}

func (c *Client) DeleteMailbox(ctx context.Context, id, cutOff string) (Change, error) {
	query := ""
	if cutOff != "" {
		query = "?cut_off=" + url.QueryEscape(cutOff)
	}
	return ask[Change](ctx, c, "DELETE", mailboxPath(id, query), nil)
}

func (c *Client) SetWeight(ctx context.Context, node string, weight uint32) (Change, error) {
	return ask[Change](ctx, c, "POST", nodePath(node, "/weight"), weight)
}

func (c *Client) SetDrain(ctx context.Context, node string, d SetDrain) (Drain, error) {
	return ask[Drain](ctx, c, "POST", nodePath(node, "/drain"), d)
}

func (c *Client) SetACME(ctx context.Context, a ACME) (Change, error) {
	return ask[Change](ctx, c, "POST", "/v1/acme", a)
}

func (c *Client) Certificates(ctx context.Context, others bool) ([]Certificates, error) {
	return ask[[]Certificates](ctx, c, "GET", fmt.Sprintf("/v1/certificates?others=%t", others), nil)
}

func (c *Client) RenewCertificates(ctx context.Context, r RenewCertificates) (Certificates, error) {
	return ask[Certificates](ctx, c, "POST", "/v1/certificates/renew", r)
}

func (c *Client) RollOverKey(ctx context.Context, r RollOverKey) (Certificates, error) {
	return ask[Certificates](ctx, c, "POST", "/v1/certificates/rollover", r)
}

func (c *Client) CheckCertificates(ctx context.Context) (CertificateCheck, error) {
	return ask[CertificateCheck](ctx, c, "GET", "/v1/certificates/check", nil)
}

func (c *Client) CA(ctx context.Context) (string, error) {
	return ask[string](ctx, c, "GET", "/v1/ca", nil)
}

func (c *Client) Invite(ctx context.Context, r Invite) (Invitation, error) {
	return ask[Invitation](ctx, c, "POST", "/v1/invites", r)
}

func (c *Client) Copies(ctx context.Context) (CopySettings, error) {
	return ask[CopySettings](ctx, c, "GET", "/v1/copies", nil)
}

func (c *Client) SetCopies(ctx context.Context, s CopySettings) (Change, error) {
	return ask[Change](ctx, c, "POST", "/v1/copies", s)
}

func (c *Client) SetMailboxPolicy(ctx context.Context, id, policy string) (Change, error) {
	return ask[Change](ctx, c, "POST", mailboxPath(id, "/policy"), policy)
}

func (c *Client) Adopt(ctx context.Context, node string) (Copies, error) {
	return ask[Copies](ctx, c, "POST", nodePath(node, "/adopt"), struct{}{})
}
