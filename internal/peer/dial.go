package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	neturl "net/url"
	"strings"
	"sync/atomic"
	"time"

	"msgw/internal/ca"
)

// Dialer connects to members.
type Dialer struct {
	// Connect makes the connection that TLS then runs on. nil: by this machine's network.
	Connect func(ctx context.Context, network, address string) (net.Conn, error)

	m    Membership
	now  func() time.Time
	live live
	lost atomic.Pointer[func(id string)]
}

// SetLost has f called when a connection that was made later ends from the other side, with
// the server id there. It must not wait.
func (d *Dialer) SetLost(f func(id string)) { d.lost.Store(&f) }

// NewDialer returns a dialer for the node that m describes.
func NewDialer(m Membership) *Dialer { return &Dialer{m: m, now: time.Now} }

// Prune ends the connections of an epoch that is over and to who is no member any more.
// It is called when the membership has changed.
func (d *Dialer) Prune() { d.live.prune(d.m) }

// Dial connects to the member with a server id.
func (d *Dialer) Dial(ctx context.Context, p Protocol, id string) (net.Conn, error) {
	name, addr, err := d.m.Resolve(id)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{p.alpn(d.m.Epoch())},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return d.m.Certificate(), nil
		},
		// A member is known by its server id, not by a host name.
		InsecureSkipVerify: true,
		VerifyConnection: func(st tls.ConnectionState) error {
			if st.NegotiatedProtocol == "" {
				return errors.New("no protocol agreed")
			}
			if p == Status {
				// It may have another server id by now, and so may this node.
				got, err := ca.VerifyPeer(d.m.Root(), st.PeerCertificates, d.now())
				if err == nil && got.Node != name {
					err = fmt.Errorf("%s answered where %s was expected", got.Node, name)
				}
				return err
			}
			got, err := verify(d.m, st.PeerCertificates, d.now())
			if err == nil && got.ID != id {
				err = fmt.Errorf("%s answered where %s was expected", got.ID, id)
			}
			return err
		},
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	connect := d.Connect
	if connect == nil {
		connect = new(net.Dialer).DialContext
	}
	c, err := connect(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(c, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	alpn := config.NextProtos[0]
	x := &conn{Conn: tc, alpn: alpn, id: id, live: &d.live, done: make(chan struct{}), lost: &d.lost}
	d.live.add(x)
	if alpn != p.alpn(d.m.Epoch()) { // it ended meanwhile
		x.Close()
		return nil, fmt.Errorf("epoch %s is over", alpn)
	}
	return x, nil
}

// JoinClient returns an HTTP client that talks to the node at addr on behalf of one
// that is no member yet. The node must hold a peer certificate issued by the CA
// with the given fingerprint, which it shows along with its own; nothing is sent
// to any other.
func JoinClient(addr, fingerprint string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			td := tls.Dialer{NetDialer: &net.Dialer{Timeout: handshakeTime}, Config: &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{Join.alpn("")}, InsecureSkipVerify: true,
				VerifyConnection: func(st tls.ConnectionState) error {
					for _, c := range st.PeerCertificates {
						if ca.Fingerprint(c) == fingerprint {
							_, err := ca.VerifyPeer(c, st.PeerCertificates, time.Now())
							return err
						}
					}
					return fmt.Errorf("%s belongs to another cluster than the token", addr)
				},
			}}
			c, err := td.DialContext(ctx, network, addr)
			return c, notSent(err)
		},
		DisableKeepAlives: true, DisableCompression: true,
	}}
}

func notSent(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNotSent, err)
}

// Client calls HTTP handlers at members: JSON in, JSON out.
type Client struct{ http map[Protocol]*http.Client }

// maxAnswer bounds what a peer may answer.
const maxAnswer = 256 << 20

// NewClient returns a client over d.
func NewClient(d *Dialer) *Client {
	c := &Client{http: map[Protocol]*http.Client{}}
	for _, p := range []Protocol{RPC, Status} {
		c.http[p] = &http.Client{Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				id, _, _ := strings.Cut(addr, ":")
				conn, err := d.Dial(ctx, p, id)
				return conn, notSent(err)
			},
			MaxIdleConnsPerHost: 2, MaxConnsPerHost: 16, IdleConnTimeout: time.Minute, DisableCompression: true,
		}}
	}
	return c
}

// Close drops idle connections.
func (c *Client) Close() {
	for _, h := range c.http {
		h.CloseIdleConnections()
	}
}

// ErrNotSent says that a call did not reach the node.
var ErrNotSent = errors.New("node not reached")

// Refusal is an answer other than 200.
type Refusal struct {
	Code int
	Text string
}

func (r *Refusal) Error() string { return r.Text }

// Call posts in to path at the member with a server id and decodes the answer into
// out, unless that is nil. Errors: ErrNotSent, *Refusal, or that of a connection
// that was lost, after which it is not known whether the call was carried out.
func (c *Client) Call(ctx context.Context, p Protocol, id, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return Post(ctx, c.http[p], "https://"+id+path, b, out)
}

// Post sends a JSON body and decodes a JSON answer; see Client.Call.
func Post(ctx context.Context, h *http.Client, url string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := h.Do(req)
	if err != nil {
		if ue := (*neturl.Error)(nil); errors.As(err, &ue) {
			err = ue.Err // without the method and a URL that only the program knows
		}
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		return &Refusal{res.StatusCode, strings.TrimSpace(string(text))}
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out)
}
