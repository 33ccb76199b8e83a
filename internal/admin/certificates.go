package admin

import (
	"context"
	"log/slog"
	"net/http"
)

// Certified is what an operator does about the certificates that mail programs see.
type Certified interface {
	// Certificates says what this node holds, and with others what the other sites do.
	Certificates(ctx context.Context, others bool) ([]Certificates, error)
	// RenewCertificates orders certificates of this node now, and waits for them.
	RenewCertificates(ctx context.Context, r RenewCertificates) (Certificates, error)
	// RollOverKey announces a new key of this node, or takes that back.
	RollOverKey(ctx context.Context, r RollOverKey) (Certificates, error)
	// CheckCertificates looks at everything that this node's certificates need.
	CheckCertificates(ctx context.Context) (CertificateCheck, error)
}

// Certificates are those of one node.
type Certificates struct {
	Node      string       `json:"node"`
	Error     string       `json:"error,omitempty"` // why another node's are not known; the rest is empty then
	Directory string       `json:"directory"`       // that they are ordered from; empty: none
	Challenge string       `json:"challenge"`       // how its host name is proven
	Account   string       `json:"account,omitempty"`
	Certs     []Cert       `json:"certificates"`
	Rollover  *KeyRollover `json:"rollover,omitempty"`
}

// KeyRollover is a key that is announced and not used yet.
type KeyRollover struct {
	Key     string `json:"key"` // SHA-256 of it, as in TLSA records
	Waiting string `json:"waiting,omitempty"`
}

// RenewCertificates asks for orders.
type RenewCertificates struct {
	Name string `json:"name,omitempty"` // empty: all
}

// RollOverKey asks for a new key.
type RollOverKey struct {
	Type    string `json:"type,omitempty"`    // p256, p384, rsa2048 or rsa4096; empty: p256
	Abandon bool   `json:"abandon,omitempty"` // forget the one that is announced
}

// CertificateCheck is what was found.
type CertificateCheck struct {
	Node     string               `json:"node"`
	OK       bool                 `json:"ok"`
	Findings []CertificateFinding `json:"findings"`
}

// CertificateFinding is one thing that was looked at.
type CertificateFinding struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func certificates(mux *http.ServeMux, n Node, log *slog.Logger) {
	get(mux, "GET /v1/certificates", log, func(ctx context.Context, r *http.Request) (any, error) {
		return n.Certificates(ctx, r.URL.Query().Get("others") == "true")
	})
	get(mux, "GET /v1/certificates/check", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.CheckCertificates(ctx) })
	post(mux, "POST /v1/certificates/renew", log, func(ctx context.Context, _ *http.Request, r RenewCertificates) (any, error) {
		return n.RenewCertificates(ctx, r)
	})
	post(mux, "POST /v1/certificates/rollover", log, func(ctx context.Context, _ *http.Request, r RollOverKey) (any, error) {
		return n.RollOverKey(ctx, r)
	})
}
