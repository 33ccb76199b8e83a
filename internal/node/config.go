package node

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"msgw/dnsplugin"
	"msgw/internal/health"
	"msgw/raftstore"
)

// Config is what only this node knows: names, paths, addresses. Everything else is
// replicated.
type Config struct {
	Name     string `toml:"name"`     // of the node, a DNS label
	State    string `toml:"state"`    // directory for everything that must survive
	Resolver string `toml:"resolver"` // host:port for lookups of its own; empty: the system's
	Listen   Listen `toml:"listen"`
	Public   Public `toml:"public"`
	DNS      DNS    `toml:"dns"`
	Health   Health `toml:"health"`
	ACME     ACME   `toml:"acme"`
	// Certificates that an operator brings.
	Certificates []Certificate `toml:"certificates"`
	Log          Log           `toml:"log"`
}

// Listen holds the addresses to bind, each host:port. A witness binds only the peer
// port, and metrics if wanted.
type Listen struct {
	SMTP    string `toml:"smtp"`
	POP3    string `toml:"pop3"`
	POP3S   string `toml:"pop3s"`
	DNS     string `toml:"dns"`
	HTTP    string `toml:"http"`  // http-01 challenges; empty: none
	HTTPS   string `toml:"https"` // MTA-STS policy, and tls-alpn-01 challenges; empty: none
	Peer    string `toml:"peer"`
	Metrics string `toml:"metrics"` // Prometheus, plain HTTP; empty: none
}

// Public says how others reach this node.
type Public struct {
	Host     string   `toml:"host"` // public host name; empty: <name>.<zone>
	IPv4     []string `toml:"ipv4"`
	IPv6     []string `toml:"ipv6"`
	Peer     string   `toml:"peer"` // host:port of the peer port; empty: as listened on
	SMTPPort int      `toml:"smtp_port"`
	DNSPort  int      `toml:"dns_port"`
}

// DNS says how many answers a network gets by UDP in a second; see dnsplugin.Rate.
type DNS struct {
	Rate   int      `toml:"rate"`   // 0: not bounded
	Slip   int      `toml:"slip"`   // one of so many beyond that is truncated; 0: none
	Exempt []string `toml:"exempt"` // networks that are not bounded
}

// Health says how this node watches the others.
type Health struct {
	Preset  string   `toml:"preset"`  // default, or fast: a silent site is noticed in 1.4 s
	Anchors []string `toml:"anchors"` // address:port of TCP services outside; if none of them and no node answers, this node is cut off
}

// ACME is what this node alone has to know about the directory.
type ACME struct {
	Challenge string `toml:"challenge"` // how its host name is proven; empty: dns-01
	KeyID     string `toml:"key_id"`    // of an account that the CA knows; empty: none is needed
	MACFile   string `toml:"mac_file"`  // with the key that goes with it, in base64url
}

// Certificate is a certificate that an operator brings, in PEM files.
type Certificate struct {
	Chain string `toml:"chain"` // the host's first
	Key   string `toml:"key"`
}

// challengeMethods are the ways to prove a host name.
var challengeMethods = []string{"dns-01", "http-01", "tls-alpn-01"}

// maxCertificates bounds how many files are watched.
const maxCertificates = 8

// timing is what the preset stands for.
func (h Health) timing() health.Timing {
	if h.Preset == "fast" {
		return health.Fast()
	}
	return health.Timing{}
}

// Log says what is logged and how.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn or error
	Format string `toml:"format"` // text or json
}

// DefaultState is the state directory where none is named.
const DefaultState = "/var/lib/msgw"

// maxAnchors bounds how many places outside are looked at.
const maxAnchors = 8

// maxConfig bounds the size of the file.
const maxConfig = 1 << 20

// LoadConfig reads and checks a configuration file. Every fault is an error of one
// line that names file, key, value and what was expected.
func LoadConfig(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("%s: %d octets, expected at most %d", path, len(b), maxConfig)
	}
	c := &Config{
		State:  DefaultState,
		Listen: Listen{SMTP: "0.0.0.0:25", POP3: "0.0.0.0:110", POP3S: "0.0.0.0:995", DNS: "0.0.0.0:53", Peer: "0.0.0.0:8451"},
		Public: Public{SMTPPort: 25, DNSPort: 53},
		DNS:    DNS{Rate: 200, Slip: 2},
		Health: Health{Preset: "default"},
		Log:    Log{Level: "info", Format: "text"},
	}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, tomlError(err))
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// tomlError makes one line of what the decoder says.
func tomlError(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) && len(strict.Errors) > 0 {
		e := strict.Errors[0]
		row, _ := e.Position()
		return fmt.Errorf("line %d: unknown key %s", row, strings.Join(e.Key(), "."))
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, _ := de.Position()
		key := strings.Join(de.Key(), ".")
		if key != "" {
			key += ": "
		}
		return fmt.Errorf("line %d: %s%s", row, key, strings.TrimPrefix(de.Error(), "toml: "))
	}
	return err
}

func (c *Config) check() error {
	if c.Name == "" {
		return errors.New("name: missing, expected the node's name, as in msgw1")
	}
	if err := raftstore.CheckNodeName(c.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if !filepath.IsAbs(c.State) {
		return fmt.Errorf("state: %q, expected an absolute path", c.State)
	}
	if _, err := c.Level(); err != nil {
		return err
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format: %q, expected text or json", c.Log.Format)
	}
	for key, a := range map[string]string{"listen.smtp": c.Listen.SMTP, "listen.pop3": c.Listen.POP3, "listen.pop3s": c.Listen.POP3S,
		"listen.dns": c.Listen.DNS, "listen.peer": c.Listen.Peer, "listen.metrics": c.Listen.Metrics, "listen.https": c.Listen.HTTPS, "listen.http": c.Listen.HTTP, "resolver": c.Resolver} {
		if a == "" && slices.Contains([]string{"listen.metrics", "listen.https", "listen.http", "resolver"}, key) {
			continue
		}
		if ap, err := netip.ParseAddrPort(a); err != nil || ap.Port() == 0 {
			return fmt.Errorf("%s: %q, expected an address and a port, as in 192.0.2.1:25", key, a)
		}
	}
	for key, list := range map[string][]string{"public.ipv4": c.Public.IPv4, "public.ipv6": c.Public.IPv6} {
		for _, s := range list {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Zone() != "" || a.Is4() != (key == "public.ipv4") || a.IsUnspecified() {
				return fmt.Errorf("%s: %q, expected an %s address", key, s, map[bool]string{true: "IPv4", false: "IPv6"}[key == "public.ipv4"])
			}
		}
	}
	for key, p := range map[string]int{"public.smtp_port": c.Public.SMTPPort, "public.dns_port": c.Public.DNSPort} {
		if p < 1 || p > 65535 {
			return fmt.Errorf("%s: %d, expected a port number", key, p)
		}
	}
	for key, n := range map[string]int{"dns.rate": c.DNS.Rate, "dns.slip": c.DNS.Slip} {
		if n < 0 || n > 1_000_000 {
			return fmt.Errorf("%s: %d, expected 0 to 1000000", key, n)
		}
	}
	if _, err := c.DNS.rate(); err != nil {
		return err
	}
	if c.Health.Preset != "default" && c.Health.Preset != "fast" {
		return fmt.Errorf("health.preset: %q, expected default or fast", c.Health.Preset)
	}
	if len(c.Health.Anchors) > maxAnchors {
		return fmt.Errorf("health.anchors: %d, expected at most %d", len(c.Health.Anchors), maxAnchors)
	}
	for _, a := range c.Health.Anchors {
		if ap, err := netip.ParseAddrPort(a); err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() {
			return fmt.Errorf("health.anchors: %q, expected an address and a port, as in 192.0.2.1:53", a)
		}
	}
	if err := c.checkCertificates(); err != nil {
		return err
	}
	if c.Public.Host != "" {
		if err := CheckHostName(c.Public.Host); err != nil {
			return fmt.Errorf("public.host: %w", err)
		}
	}
	if c.Public.Peer != "" {
		if host, port, err := net.SplitHostPort(c.Public.Peer); err != nil || host == "" || port == "" {
			return fmt.Errorf("public.peer: %q, expected host:port, as in 192.0.2.1:8451", c.Public.Peer)
		}
	}
	return nil
}

func (c *Config) checkCertificates() error {
	switch a := c.ACME; {
	case a.Challenge != "" && !slices.Contains(challengeMethods, a.Challenge):
		return fmt.Errorf("acme.challenge: %q, expected %s", a.Challenge, strings.Join(challengeMethods, ", "))
	case a.Challenge == "http-01" && c.Listen.HTTP == "":
		return errors.New("listen.http: missing, expected the address that http-01 is answered at, as in 0.0.0.0:80")
	case a.Challenge == "tls-alpn-01" && c.Listen.HTTPS == "":
		return errors.New("listen.https: missing, expected the address that tls-alpn-01 is answered at, as in 0.0.0.0:443")
	case (a.KeyID == "") != (a.MACFile == ""):
		return errors.New("acme.key_id, acme.mac_file: expected both, or none")
	case len(c.Certificates) > maxCertificates:
		return fmt.Errorf("certificates: %d, expected at most %d", len(c.Certificates), maxCertificates)
	}
	for _, f := range c.Certificates {
		if !filepath.IsAbs(f.Chain) || !filepath.IsAbs(f.Key) {
			return fmt.Errorf("certificates: chain %q, key %q, expected absolute paths", f.Chain, f.Key)
		}
	}
	return nil
}

// rate is what the file says for the DNS server.
func (d DNS) rate() (dnsplugin.Rate, error) {
	r := dnsplugin.Rate{PerSecond: d.Rate, Slip: d.Slip}
	for _, s := range d.Exempt {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return r, fmt.Errorf("dns.exempt: %q, expected a network, as in 192.0.2.0/24", s)
		}
		r.Exempt = append(r.Exempt, p)
	}
	return r, nil
}

// Level returns the log level.
func (c *Config) Level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Log.Level)); err != nil {
		return 0, fmt.Errorf("log.level: %q, expected debug, info, warn or error", c.Log.Level)
	}
	return l, nil
}

// PeerAddress is where the other nodes reach this one. It returns an error if the
// file leaves it open.
func (c *Config) PeerAddress() (string, error) {
	if c.Public.Peer != "" {
		return c.Public.Peer, nil
	}
	ap := netip.MustParseAddrPort(c.Listen.Peer)
	if !ap.Addr().IsUnspecified() {
		return c.Listen.Peer, nil
	}
	for _, a := range append(c.Public.IPv4, c.Public.IPv6...) {
		return net.JoinHostPort(a, fmt.Sprint(ap.Port())), nil
	}
	return "", errors.New("public.peer: missing, expected the address at which the other nodes reach this one, as in 192.0.2.1:8451")
}

// host is the public name of the node in a zone.
func (c *Config) host(zone string) string {
	if c.Public.Host != "" {
		return c.Public.Host
	}
	return c.Name + "." + zone
}

// CheckHostName says whether a name can be a public host name or a zone (RFC 1123
// section 2.1).
func CheckHostName(name string) error {
	if !raftstore.IsHostName(name) {
		return fmt.Errorf("%q, expected a full host name in lower case, as in msgw1.msgw.example.com", name)
	}
	return nil
}
