package pop3d

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"msgw/internal/lineproto"

	"github.com/prometheus/client_golang/prometheus"
)

// Options configures a Server. Maildrops, TLS and Log must be given; any other
// zero field means the default named beside it.
type Options struct {
	Maildrops Maildrops
	TLS       *tls.Config // used with at least TLS 1.2, whatever it says
	Log       *slog.Logger
	Metrics   prometheus.Registerer // nil: counted, not registered

	Limits lineproto.Limits // 1000, 100 per address, 250 per network; negative: none

	HandshakeTime time.Duration // longest TLS handshake: 15 s
	LoginIdle     time.Duration // longest silence before login: 1 minute
	LoginTime     time.Duration // longest connection without login: 3 minutes
	Idle          time.Duration // longest silence after login: 10 minutes, the least RFC 1939, section 3, allows
	WriteTime     time.Duration // longest wait for the client to take 64 KiB: 1 minute
	Grace         time.Duration // what a command under way gets when the server stops: 20 s

	FailureDelay time.Duration // wait before the first failed login is answered, times two and three for the next: 500 ms
	Throttle     Throttle
}

func (o *Options) setDefaults() {
	o.Limits.Total = cmp.Or(o.Limits.Total, 1000)
	o.Limits.PerAddress = cmp.Or(o.Limits.PerAddress, 100)
	o.Limits.PerNetwork = cmp.Or(o.Limits.PerNetwork, 250)
	o.HandshakeTime = cmp.Or(o.HandshakeTime, 15*time.Second)
	o.LoginIdle = cmp.Or(o.LoginIdle, time.Minute)
	o.LoginTime = cmp.Or(o.LoginTime, 3*time.Minute)
	o.Idle = cmp.Or(o.Idle, 10*time.Minute)
	o.WriteTime = cmp.Or(o.WriteTime, time.Minute)
	o.Grace = cmp.Or(o.Grace, 20*time.Second)
	o.FailureDelay = cmp.Or(o.FailureDelay, 500*time.Millisecond)
	o.Throttle.Window = cmp.Or(o.Throttle.Window, 10*time.Minute)
	o.Throttle.Address = cmp.Or(o.Throttle.Address, 300)
	o.Throttle.User = cmp.Or(o.Throttle.User, 20)
	o.Throttle.Keys = cmp.Or(o.Throttle.Keys, 1<<16)
}

// Server is a POP3 server.
type Server struct {
	options  Options
	tls      *tls.Config
	throttle *throttle
	metrics  *metrics
}

// New makes a Server. It panics if o.Metrics already holds its metrics.
func New(o Options) *Server {
	o.setDefaults()
	s := &Server{options: o, throttle: newThrottle(o.Throttle), metrics: newMetrics(o.Metrics)}
	if o.TLS != nil {
		s.tls = o.TLS.Clone()
		s.tls.MinVersion = max(s.tls.MinVersion, tls.VersionTLS12)
	}
	return s
}

// Serve serves connections to plain, where TLS begins with STLS, and to implicit,
// where it begins at once; both accept bare TCP and either may be nil. It closes
// them and returns when ctx has ended and every session has: those that wait for a
// command at once, those within one when it is done or Options.Grace is over.
//
// The error is that of a listener that failed by itself, or tells what Options lacks.
func (s *Server) Serve(ctx context.Context, plain, implicit net.Listener) error {
	var ls []net.Listener
	if plain != nil {
		ls = append(ls, plain)
	}
	if implicit != nil {
		ls = append(ls, implicitListener{implicit})
	}
	if s.tls == nil || s.options.Maildrops == nil || s.options.Log == nil {
		for _, l := range ls {
			l.Close()
		}
		return errors.New("pop3d: Options need Maildrops, TLS and Log")
	}
	server := lineproto.Server{Handler: handler{s}, Limits: s.options.Limits, Log: s.options.Log}
	return server.Serve(ctx, ls...)
}

// implicitListener marks its connections as those where TLS begins at once.
type implicitListener struct{ net.Listener }

type implicitConn struct{ net.Conn }

func (l implicitListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return implicitConn{c}, nil
}

// handler is the Server as its accept loop sees it.
type handler struct{ *Server }

func (h handler) Handle(ctx context.Context, c net.Conn) {
	_, implicit := c.(implicitConn)
	newSession(h.Server, c).serve(ctx, implicit)
}

func (h handler) Refuse(c net.Conn) {
	if _, implicit := c.(implicitConn); !implicit {
		// The connection closes whether or not the peer got to know why.
		_, _ = c.Write([]byte("-ERR [SYS/TEMP] too many connections\r\n"))
	}
}
