package sender

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// peer is a small SMTP server that does as it is told.
type peer struct {
	offers []string          // EHLO keywords
	say    map[string]string // verb, "greeting", "354", "dot" or "LAST" -> reply instead of a good one
	drop   string            // verb (or as above) at which the connection is closed, unanswered
	stall  string            // at which nothing is said any more
	hung   func()            // called when that is reached
	tls    *tls.Config
	sloppy bool   // says "250 more" in clear right behind the reply to STARTTLS
	slam   string // said in the midst of a body, and the connection is closed

	addr netip.AddrPort
	mu   sync.Mutex
	got  []received
	log  []string // command lines
	conn int      // connections
}

type received struct {
	from, to []string // MAIL and RCPT lines
	msg      []byte
	tls      bool
}

// start serves p until the test ends.
func (p *peer) start(t *testing.T) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = l.Addr().(*net.TCPAddr).AddrPort()
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
				p.serve(ctx, c)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	return p
}

// line answers at a point of the dialogue; false ends the connection.
func (p *peer) line(ctx context.Context, c net.Conn, at, good string) bool {
	if p.drop == at {
		return false
	}
	if p.stall == at {
		if p.hung != nil {
			p.hung()
		}
		<-ctx.Done()
		return false
	}
	if s, ok := p.say[at]; ok {
		good = s
	}
	_, err := fmt.Fprintf(c, "%s\r\n", good)
	return err == nil && !strings.HasPrefix(good, "421")
}

func (p *peer) serve(ctx context.Context, c net.Conn) {
	p.mu.Lock()
	p.conn++
	p.mu.Unlock()
	r := bufio.NewReader(c)
	secure := false
	var m received
	begun := false // a transaction
	if !p.line(ctx, c, "greeting", "220 peer.example.org") {
		return
	}
	for {
		s, err := r.ReadString('\n')
		if err != nil {
			return
		}
		s = strings.TrimSuffix(s, "\r\n")
		p.mu.Lock()
		p.log = append(p.log, s)
		p.mu.Unlock()
		verb, arg, _ := strings.Cut(s, " ")
		ok := true
		switch verb {
		case "EHLO":
			offers := slices.Clone(p.offers)
			if secure {
				offers = slices.DeleteFunc(offers, func(s string) bool { return s == "STARTTLS" })
			}
			text := "250-peer.example.org"
			for _, o := range offers {
				text += "\r\n250-" + o
			}
			ok = p.line(ctx, c, verb, text+"\r\n250 HELP")
		case "HELO":
			ok = p.line(ctx, c, verb, "250 peer.example.org")
		case "STARTTLS":
			good := "220 go ahead"
			if p.sloppy {
				good += "\r\n250 more"
			}
			if ok = p.line(ctx, c, verb, good); ok && p.tls != nil && p.say[verb] == "" {
				tc := tls.Server(c, p.tls)
				if tc.HandshakeContext(ctx) != nil {
					return
				}
				c, secure = tc, true
				r = bufio.NewReader(c)
			}
		case "MAIL":
			if begun {
				ok = p.line(ctx, c, "nested", "503 5.5.1 nested MAIL")
				break
			}
			begun = p.say[verb] == ""
			m = received{from: []string{s}, tls: secure}
			ok = p.line(ctx, c, verb, "250 2.1.0 ok")
		case "RCPT":
			at := "RCPT"
			for name := range p.say {
				if name != "" && strings.Contains(arg, name) {
					at = name
				}
			}
			if ok = p.line(ctx, c, at, "250 2.1.5 ok"); p.say[at] == "" {
				m.to = append(m.to, s)
			}
		case "DATA":
			if len(m.to) == 0 {
				ok = p.line(ctx, c, "none", "503 5.5.1 no recipients")
				break
			}
			if ok = p.line(ctx, c, verb, "354 go on"); !ok || p.say[verb] != "" {
				break
			}
			if p.slammed(ctx, c, r) {
				return
			}
			if m.msg, err = unstuff(r); err != nil {
				return
			}
			begun = false
			ok = p.line(ctx, c, "dot", p.keep("dot", m))
		case "BDAT":
			if p.slammed(ctx, c, r) {
				return
			}
			f := strings.Fields(arg)
			n, err := strconv.ParseInt(f[0], 10, 64)
			if err != nil {
				return
			}
			b, err := io.ReadAll(io.LimitReader(r, n))
			if err != nil || int64(len(b)) < n {
				return
			}
			m.msg = append(m.msg, b...)
			if len(f) == 1 {
				ok = p.line(ctx, c, verb, "250 2.0.0 chunk")
				break
			}
			begun = false
			ok = p.line(ctx, c, "LAST", p.keep("LAST", m))
			m = received{}
		case "RSET":
			m, begun = received{}, false
			ok = p.line(ctx, c, verb, "250 2.0.0 ok")
		case "QUIT":
			p.line(ctx, c, verb, "221 2.0.0 bye")
			return
		default:
			ok = p.line(ctx, c, "unknown", "500 5.5.1 what")
		}
		if !ok {
			return
		}
	}
}

// slammed reads a little of a body and has done, where that is wanted.
func (p *peer) slammed(ctx context.Context, c net.Conn, r io.Reader) bool {
	if p.slam == "" && p.drop != "body" && p.stall != "body" {
		return false
	}
	io.CopyN(io.Discard, r, 10)
	if p.slam != "" {
		fmt.Fprintf(c, "%s\r\n", p.slam)
	}
	if p.stall == "body" {
		<-ctx.Done()
	}
	return true
}

// keep records a message that is not to be refused and returns the good reply to
// it: one line for each recipient.
func (p *peer) keep(at string, m received) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lines []string
	for i := range m.to {
		sep := "-"
		if i == len(m.to)-1 {
			sep = " "
		}
		lines = append(lines, fmt.Sprintf("250%s2.0.0 stored id-%d-%d", sep, len(p.got), i))
	}
	if p.say[at] == "" {
		p.got = append(p.got, m)
	}
	return strings.Join(lines, "\r\n")
}

func (p *peer) messages() []received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

func (p *peer) commands() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

func (p *peer) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

// unstuff reads the data of DATA octet by octet, as RFC 5321 section 4.5.2 has it.
// A line that begins with one dot and goes on is an error here.
func unstuff(r io.ByteReader) ([]byte, error) {
	var msg []byte
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			return msg, nil
		}
		if line[0] == '.' {
			if line[1] != '.' {
				return nil, fmt.Errorf("not stuffed: %q", line)
			}
			line = line[1:]
		}
		msg = append(msg, line...)
	}
}

// readLine reads up to and with CRLF.
func readLine(r io.ByteReader) ([]byte, error) {
	var line []byte
	for !bytes.HasSuffix(line, crlf) {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		line = append(line, b)
	}
	return line, nil
}

// zone is what a name server knows: "name TYPE" -> records in presentation format.
type zone map[string][]string

// nameServer serves z by UDP and TCP. Where mute, it takes queries and is silent;
// rcode, if not zero, is all that it says; cut truncates what it says by UDP.
type nameServer struct {
	z     zone
	mute  bool
	rcode int
	cut   bool

	mu  sync.Mutex
	tcp int // queries by TCP
}

func (n *nameServer) start(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := pc.LocalAddr().String()
	// The TCP port of the same number may be taken.
	l, err := net.Listen("tcp", addr)
	for try := 0; err != nil && try < 20; try++ {
		pc.Close()
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		addr = pc.LocalAddr().String()
		l, err = net.Listen("tcp", addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // runs last
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: n}, {Listener: l, Handler: n}} {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		wg.Go(func() { srv.ActivateAndServe() })
		<-up
		t.Cleanup(func() { srv.Shutdown() })
	}
	return addr
}

func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if n.mute {
		return
	}
	tcp := w.RemoteAddr().Network() == "tcp"
	if tcp {
		n.mu.Lock()
		n.tcp++
		n.mu.Unlock()
	}
	m := new(dns.Msg)
	m.SetReply(q)
	name := q.Question[0].Name
	known := false
	for key := range n.z {
		known = known || strings.HasPrefix(key, name+" ")
	}
	switch {
	case n.rcode != 0:
		m.Rcode = n.rcode
	case n.cut && !tcp:
		m.Truncated = true
	case !known:
		m.Rcode = dns.RcodeNameError
	default:
		for _, s := range n.z[name+" "+dns.TypeToString[q.Question[0].Qtype]] {
			rr, err := dns.NewRR(name + " 60 IN " + dns.TypeToString[q.Question[0].Qtype] + " " + s)
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
	}
	w.WriteMsg(m)
}

const domain = "journal.example.org"

// site is a zone with one MX host per peer, at preference 10, 20, ...; a nil peer
// is a host where nobody listens.
func site(t *testing.T, peers ...*peer) Config {
	t.Helper()
	z := zone{}
	ports := map[netip.Addr]netip.AddrPort{}
	for i, p := range peers {
		host := fmt.Sprintf("mx%d.example.org.", i+1)
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		z[domain+". MX"] = append(z[domain+". MX"], fmt.Sprintf("%d %s", 10*(i+1), host))
		z[host+" A"] = []string{a.String()}
		ports[a] = netip.MustParseAddrPort("127.0.0.1:1") // refused

		if p != nil {
			ports[a] = p.addr
		}
	}
	return Config{
		Servers: []string{(&nameServer{z: z}).start(t)},
		Address: func(a netip.Addr) netip.AddrPort { return ports[a] },
		Timeouts: Timeouts{Query: 5 * time.Second, Connect: 5 * time.Second, Reply: 10 * time.Second,
			Block: 10 * time.Second, Final: 10 * time.Second},
	}
}

// certificate returns a server certificate for host that roots trusts.
func certificate(t *testing.T, roots *x509.CertPool, host string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
