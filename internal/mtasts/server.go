package mtasts

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Path is where the policy of a host is (RFC 8461 section 3.3).
const Path = "/.well-known/mta-sts.txt"

// Bounds of the server.
const (
	maxConns       = 64
	maxConnsOfOne  = 8 // from one IPv4 address, or IPv6 /64
	maxHeader      = 8 << 10
	requestTime    = 10 * time.Second // for the handshake, for a request, and for its answer
	wholeTime      = 30 * time.Second // of a connection, whatever its client does
	handlerMessage = "policies of MTA-STS are at " + Path + "\n"
)

// Serve serves policies over TLS on l until ctx ends, and closes l. policy gives the text for
// a host name in lower case, or false if there is none. The error is that of a listener that
// failed by itself.
func Serve(ctx context.Context, l net.Listener, config *tls.Config, policy func(host string) (string, bool), logger *slog.Logger) error {
	config = config.Clone()
	config.NextProtos = append(slices.Clone(config.NextProtos), "http/1.1")
	s := &http.Server{Handler: handler(policy), MaxHeaderBytes: maxHeader, ReadHeaderTimeout: requestTime, ReadTimeout: requestTime,
		WriteTimeout: requestTime, IdleTimeout: requestTime, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ErrorLog: log.New(debugLog{logger}, "", 0)}
	s.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	err := s.Serve(tls.NewListener(newLimited(l), config))
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(err, s.Close())
}

func handler(policy func(host string) (string, bool)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		text, ok := policy(strings.ToLower(strings.TrimSuffix(host, ".")))
		switch {
		case !ok || r.URL.Path != Path:
			http.Error(w, handlerMessage, http.StatusNotFound)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "GET or HEAD", http.StatusMethodNotAllowed)
		default:
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = io.WriteString(w, text) // a client that is gone needs no answer
		}
	})
}

// debugLog takes what net/http says of single connections.
type debugLog struct{ log *slog.Logger }

func (d debugLog) Write(p []byte) (int, error) {
	d.log.Debug("mta-sts: " + strings.TrimSpace(string(p)))
	return len(p), nil
}

// limited closes the connections that are too many, and ends each after some time.
type limited struct {
	net.Listener
	mu    sync.Mutex
	all   int
	ofOne map[netip.Prefix]int
}

func newLimited(l net.Listener) *limited {
	return &limited{Listener: l, ofOne: map[netip.Prefix]int{}}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := network(c.RemoteAddr())
		l.mu.Lock()
		ok := l.all < maxConns && l.ofOne[from] < maxConnsOfOne
		if ok {
			l.all++
			l.ofOne[from]++
		}
		l.mu.Unlock()
		if ok {
			return &counted{Conn: c, end: time.AfterFunc(wholeTime, func() { c.Close() }), gone: func() { l.left(from) }}, nil
		}
		c.Close()
	}
}

func (l *limited) left(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.ofOne[from]--; l.ofOne[from] == 0 {
		delete(l.ofOne, from)
	}
}

// network is what the connections of one client are counted by; all of those whose address
// is not one of the internet are one.
func network(a net.Addr) netip.Prefix {
	ap, _ := netip.ParseAddrPort(a.String())
	bits, ip := 64, ap.Addr().Unmap().WithZone("")
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}

type counted struct {
	net.Conn
	end  *time.Timer
	once sync.Once
	gone func()
}

func (c *counted) Close() error {
	c.once.Do(func() { c.end.Stop(); c.gone() })
	return c.Conn.Close()
}
