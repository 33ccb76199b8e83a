package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"msgw/internal/admin"
	"msgw/internal/certs"
)

// openCerts opens the certificates of this site's host.
func (n *Node) openCerts() (*certs.Manager, error) {
	names := []string{n.host()}
	if old := n.store.State().Nodes[n.id.Name].Host; old != names[0] {
		names = append(names, old) // the others ask for it until they know the new one
	}
	own := certs.Own{Challenge: n.cfg.ACME.Challenge, HTTP: n.cfg.Listen.HTTP, HTTPS: n.cfg.Listen.HTTPS, KeyID: n.cfg.ACME.KeyID}
	if path := n.cfg.ACME.MACFile; path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, operatorError(fmt.Errorf("acme.mac_file: %w", err), "")
		}
		own.MAC = strings.TrimSpace(string(b))
	}
	var files []certs.File
	for _, c := range n.cfg.Certificates {
		files = append(files, certs.File{Chain: c.Chain, Key: c.Key})
	}
	return certs.Open(certs.Options{Dir: filepath.Join(n.cfg.State, certsDir), Names: names, Shared: n.sharedNames, Authority: n.authority,
		Root: func() string { return n.store.State().CA.Certificate }, Changed: n.store.Changed, Resolver: n.cfg.Resolver, Log: n.log,
		ACME: func() certs.ACME { return certs.ACME(n.store.State().ACME) }, Own: own, Files: files,
		ChallengeName: func(host string) string { return challengeName(n.store.State().Zone.Name, n.id.Name, host) },
		Known:         func(host string) bool { return n.store.State().Nodes[n.id.Name].Host == host },
		Others:        n.tellChallenge, Announced: n.keyAnnounced})
}

func (n *Node) certificates() []admin.Cert {
	var out []admin.Cert
	if n.certs != nil {
		for _, c := range n.certs.List() {
			out = append(out, admin.Cert{Names: c.Names, Source: c.Source, Issuer: c.Issuer, NotAfter: c.NotAfter, Key: c.Key, Served: c.Served,
				Trouble: c.Trouble, Last: c.Last.UTC(), Error: c.Error, Next: c.Next.UTC()})
		}
	}
	c := n.members.Certificate().Leaf
	return append(out, admin.Cert{Names: []string{n.id.Name}, Source: "peer", Issuer: c.Issuer.CommonName, NotAfter: c.NotAfter.UTC(), Served: true})
}

// ownCertificates describes this site's.
func (n *Node) ownCertificates() admin.Certificates {
	out := admin.Certificates{Node: n.id.Name, Directory: n.store.State().ACME.Directory, Challenge: n.cfg.ACME.Challenge, Certs: n.certificates()}
	if out.Challenge == "" {
		out.Challenge = challengeMethods[0]
	}
	out.Account = n.certs.Account(context.Background())
	if r := n.certs.Rollover(); r.Key != "" {
		out.Rollover = &admin.KeyRollover{Key: r.Key, Waiting: r.Waiting}
	}
	return out
}

var errWitnessHasNone = admin.Errorf(http.StatusConflict, "ask a site", "a witness shows no certificate to mail programs")

// Certificates describes this site's certificates, and with others those of the other sites.
func (n operator) Certificates(ctx context.Context, others bool) ([]admin.Certificates, error) {
	if n.certs == nil {
		return nil, errWitnessHasNone
	}
	out := []admin.Certificates{n.ownCertificates()}
	if !others {
		return out, nil
	}
	for _, site := range n.sites() {
		if site.Name == n.id.Name {
			continue
		}
		var theirs admin.Certificates
		if err := (peerCalls{n.Node}).call(ctx, site.Name, "/certificates", struct{}{}, &theirs); err != nil {
			theirs = admin.Certificates{Error: err.Error()}
		}
		theirs.Node = site.Name
		out = append(out, theirs)
	}
	return out, nil
}

// RenewCertificates orders certificates now.
func (n operator) RenewCertificates(ctx context.Context, r admin.RenewCertificates) (admin.Certificates, error) {
	if n.certs == nil {
		return admin.Certificates{}, errWitnessHasNone
	}
	switch err := n.certs.Renew(ctx, r.Name); {
	case errors.Is(err, certs.ErrNotOrdered):
		return admin.Certificates{}, admin.Errorf(http.StatusConflict, "`msgw cert list` shows what is held; `msgw acme` sets the directory",
			"%s: it is not ordered from a directory", cmp.Or(r.Name, "certificates"))
	case err != nil:
		return admin.Certificates{}, admin.Errorf(http.StatusBadGateway, "`msgw cert check` looks at what an order needs; it is tried again by itself", "no certificate: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return n.ownCertificates(), nil
}

// RollOverKey announces a new key, or takes that back.
func (n operator) RollOverKey(_ context.Context, r admin.RollOverKey) (admin.Certificates, error) {
	if n.certs == nil {
		return admin.Certificates{}, errWitnessHasNone
	}
	if r.Abandon {
		gone, err := n.certs.Abandon()
		if err == nil && !gone {
			return admin.Certificates{}, admin.Errorf(http.StatusConflict, "it goes on by itself; begin another rollover after it", "a certificate has the new key already")
		}
		return n.ownCertificates(), err
	}
	if r.Type != "" && !slices.Contains(certs.KeyTypes, r.Type) {
		return admin.Certificates{}, admin.Errorf(http.StatusBadRequest, "", "type %q: expected one of %s", r.Type, strings.Join(certs.KeyTypes, ", "))
	}
	switch err := n.certs.RollOver(r.Type); {
	case errors.Is(err, certs.ErrByFile):
		return admin.Certificates{}, admin.Errorf(http.StatusConflict, "put a new key and certificate into those files: the key is announced first", "%s", err)
	case err != nil:
		return admin.Certificates{}, err
	}
	n.tellOthers() // so that they answer it
	return n.ownCertificates(), nil
}
