package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/internal/delegation"
)

// checkTime bounds a look at everything that certificates need.
const checkTime = 30 * time.Second

// certCheck collects findings.
type certCheck struct {
	*Node
	out admin.CertificateCheck
}

// CheckCertificates looks at everything that this node's certificates need: the directory,
// the way by which its name is proven, who may issue, what is served, and what is announced.
func (n operator) CheckCertificates(ctx context.Context) (admin.CertificateCheck, error) {
	if n.certs == nil {
		return admin.CertificateCheck{}, errWitnessHasNone
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	c := &certCheck{Node: n.Node, out: admin.CertificateCheck{Node: n.id.Name, OK: true}}
	s := n.store.State()
	names := append([]string{n.host()}, n.sharedNames()...)
	if s.ACME.Directory != "" {
		c.directory(ctx)
		c.challenge(ctx)
		for _, name := range names {
			c.caa(ctx, name, directoryCA(s.ACME))
		}
	}
	for _, name := range names {
		c.served(name)
	}
	if s.Content.TLSA {
		c.tlsa(ctx)
	}
	c.files()
	return c.out, nil
}

func (c *certCheck) found(what string, err error, format string, args ...any) {
	f := admin.CertificateFinding{What: what, OK: err == nil, Detail: fmt.Sprintf(format, args...)}
	if err != nil {
		f.Detail, c.out.OK = err.Error(), false
	}
	c.out.Findings = append(c.out.Findings, f)
}

// roots are those of the system and what the directory's own certificate is checked against.
func (c *certCheck) roots() *x509.CertPool {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	pool.AppendCertsFromPEM([]byte(c.store.State().ACME.Roots))
	return pool
}

// directory looks whether the directory answers.
func (c *certCheck) directory(ctx context.Context) {
	a := c.store.State().ACME
	dialer := net.Dialer{Resolver: c.ownResolver()}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, DisableKeepAlives: true, TLSClientConfig: &tls.Config{}}
	if a.Roots != "" {
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		transport.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(a.Roots))
	}
	client := &acme.Client{Directory: a.Directory, HTTPClient: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
	_, err := client.GetDirectory(ctx)
	c.found("directory", err, "%s answers", a.Directory)
}

// challenge looks whether what this node answers at its challenge name is found from outside.
func (c *certCheck) challenge(ctx context.Context) {
	if m := c.cfg.ACME.Challenge; m != "" && m != challengeMethods[0] {
		c.found("challenge", nil, "%s: not looked at; the port has to be open to the world", m)
		return
	}
	host, zone := c.host(), c.store.State().Zone.Name
	at, value := challengeName(zone, c.id.Name, host), "msgw-check-"+rand.Text()
	public := dns.Fqdn("_acme-challenge." + host)
	remove := c.certs.Try(at, value)
	defer remove()
	m, err := delegation.Looker{Resolver: c.cfg.Resolver}.Ask(ctx, public, dns.TypeTXT)
	switch {
	case err != nil:
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		err = fmt.Errorf("the resolver answers %s for TXT of %s", dns.RcodeToString[m.Rcode], public)
	case !slices.Contains(texts(m), value):
		err = fmt.Errorf("the resolver does not find at %s what this node answers", public)
		if at != public {
			err = fmt.Errorf("%w: the parent zone needs `%s CNAME %s`", err, public, at)
		} else {
			err = fmt.Errorf("%w; see `msgw dns check`", err)
		}
	}
	c.found("challenge", err, "what this node answers at %s is found from outside", public)
}

// caa looks up who may issue a certificate for a name (RFC 8659 section 3). ca is the domain
// of the directory's CA; empty: not known.
func (c *certCheck) caa(ctx context.Context, name, ca string) {
	what := "CAA of " + name
	for labels := dns.SplitDomainName(name); len(labels) > 0; labels = labels[1:] {
		at := dns.Fqdn(strings.Join(labels, "."))
		m, err := delegation.Looker{Resolver: c.cfg.Resolver}.Ask(ctx, at, dns.TypeCAA)
		if err != nil {
			c.found(what, err, "")
			return
		}
		if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			c.found(what, fmt.Errorf("the resolver answers %s at %s: a CA issues nothing then", dns.RcodeToString[m.Rcode], at), "")
			return
		}
		var issue []string
		found := false
		for _, rr := range m.Answer {
			if r, ok := rr.(*dns.CAA); ok {
				found = true
				if strings.EqualFold(r.Tag, "issue") {
					domain, _, _ := strings.Cut(r.Value, ";")
					issue = append(issue, strings.ToLower(strings.TrimSpace(domain)))
				}
			}
		}
		switch {
		case !found:
			continue
		case len(issue) == 0 || ca != "" && slices.Contains(issue, ca):
			c.found(what, nil, "at %s, allow the CA of the directory", at)
		case ca == "" && orNobody(issue) == nobody:
			c.found(what, fmt.Errorf("at %s they allow nobody", at), "")
		case ca == "":
			c.found(what, nil, "at %s: %s; which of them is the CA of the directory is not known", at, strings.Join(issue, ", "))
		default:
			c.found(what, fmt.Errorf("at %s they allow %s, and not %s", at, orNobody(issue), ca), "")
		}
		return
	}
	c.found(what, nil, "none: any CA may issue")
}

const nobody = "nobody"

func orNobody(list []string) string {
	list = slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
	if len(list) == 0 {
		return nobody
	}
	return strings.Join(list, ", ")
}

// served looks at the certificate that is shown for a name.
func (c *certCheck) served(name string) {
	cert, err := c.certs.TLS().GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		c.found("certificate of "+name, err, "")
		return
	}
	between := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if ca, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(ca)
		}
	}
	_, err = cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: c.roots(), Intermediates: between})
	if err != nil {
		err = fmt.Errorf("of %s, until %s: %w", cert.Leaf.Issuer.CommonName, cert.Leaf.NotAfter.Format(time.DateOnly), err)
	}
	c.found("certificate of "+name, err, "of %s, until %s", cert.Leaf.Issuer.CommonName, cert.Leaf.NotAfter.Format(time.DateOnly))
}

// tlsa compares what each site answers with the keys of this one.
func (c *certCheck) tlsa(ctx context.Context) {
	if !strings.HasSuffix(c.host(), "."+c.store.State().Zone.Name) {
		c.found("TLSA", nil, "none: %s is outside of the zone", c.host())
		return
	}
	keys := c.certs.Keys()
	for _, site := range c.sites() {
		m, err := c.askSite(ctx, site, "_25._tcp."+c.host(), dns.TypeTLSA)
		if err == nil {
			for _, key := range keys {
				if !hasKey(m, key) {
					err = errors.Join(err, fmt.Errorf("%s is missing", key))
				}
			}
		}
		if err != nil {
			err = errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		c.found("TLSA at "+site.Name, err, "%d keys, as they are here", len(keys))
	}
}

// files looks whether anybody else can read what is stored.
func (c *certCheck) files() {
	var open []string
	dir := filepath.Join(c.cfg.State, certsDir)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && fi.Mode().Perm()&0o077 != 0 {
			open = append(open, path)
		}
		return err
	})
	if err == nil && len(open) > 0 {
		err = fmt.Errorf("others can read %s; expected mode 0600", strings.Join(open, ", "))
	}
	c.found("stored keys", err, "nobody else can read what is in %s", dir)
}
