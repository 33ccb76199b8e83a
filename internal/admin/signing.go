package admin

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"msgw/internal/delegation"
)

// Delegated is what an operator does about the parent of the zone, and about signing,
// which needs the parent.
type Delegated interface {
	// ParentRecords says what the parent zone has to hold.
	ParentRecords(ctx context.Context) (ParentRecords, error)
	// CheckParent compares that with what the parent serves, from each node.
	CheckParent(ctx context.Context) (ParentCheck, error)
	Signing(ctx context.Context) (Signing, error)
	// Sign takes the next step towards what is wanted.
	Sign(ctx context.Context, s Sign) (Signing, error)
}

// ParentRecords are what the parent zone has to hold.
type ParentRecords struct {
	Zone    string         `json:"zone"`
	Records []ParentRecord `json:"records"`
	Notes   []string       `json:"notes,omitempty"` // what else is to be known
}

// ParentRecord is one record of the parent zone.
type ParentRecord struct {
	Name string `json:"name"`
	TTL  uint32 `json:"ttl"`
	Type string `json:"type"`
	Data string `json:"data"`
}

// ParentCheck is what the nodes see of the parent.
type ParentCheck struct {
	Zone  string       `json:"zone"`
	OK    bool         `json:"ok"` // every node could look, and nothing differs
	Nodes []ParentView `json:"nodes"`
}

// ParentView is what one node sees of the parent.
type ParentView struct {
	Node  string `json:"node"`
	Error string `json:"error,omitempty"` // it could not look
	delegation.View
	Differences []string `json:"differences"`
}

// Sign asks for a step.
type Sign struct {
	Want   string `json:"want"`              // on, off or rollover
	MaxTTL uint32 `json:"max_ttl,omitempty"` // on: the highest TTL of the zone in seconds; 0: the default
	// Changed is when the parent changed its DS, as the operator says; zero: it is looked.
	Changed time.Time `json:"changed,omitzero"`
	Force   bool      `json:"force,omitempty"` // off: whatever the parent has
}

// Signing is how the zone is signed.
type Signing struct {
	Zone   string       `json:"zone"`
	Phase  string       `json:"phase"` // empty: not signed
	Keys   []SigningKey `json:"keys,omitempty"`
	MaxTTL uint32       `json:"max_ttl,omitempty"`
	Since  time.Time    `json:"since,omitzero"`
	// Next is the earliest time of the next step, if it can be said; Waiting is for what.
	Next    time.Time `json:"next,omitzero"`
	Waiting string    `json:"waiting,omitempty"`
	Do      []string  `json:"do,omitempty"` // what the operator does next
	Missing []string  `json:"missing,omitempty"`
	Trouble string    `json:"trouble,omitempty"` // this node cannot sign
}

// SigningKey is one key of the zone.
type SigningKey struct {
	Tag     uint16    `json:"tag"`
	Created time.Time `json:"created"`
	Signs   bool      `json:"signs"` // the records of the zone; every key signs the keys
	DS      string    `json:"ds"`    // data of the DS record
}

func delegatedRoutes(mux *http.ServeMux, n Node, log *slog.Logger) {
	get(mux, "GET /v1/dns/parent", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.ParentRecords(ctx) })
	get(mux, "GET /v1/dns/parent/check", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.CheckParent(ctx) })
	get(mux, "GET /v1/dns/signing", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Signing(ctx) })
	post(mux, "POST /v1/dns/signing", log, func(ctx context.Context, _ *http.Request, s Sign) (any, error) { return n.Sign(ctx, s) })
}

func (c *Client) ParentRecords(ctx context.Context) (ParentRecords, error) {
	return ask[ParentRecords](ctx, c, "GET", "/v1/dns/parent", nil)
}

func (c *Client) CheckParent(ctx context.Context) (ParentCheck, error) {
	return ask[ParentCheck](ctx, c, "GET", "/v1/dns/parent/check", nil)
}

func (c *Client) Signing(ctx context.Context) (Signing, error) {
	return ask[Signing](ctx, c, "GET", "/v1/dns/signing", nil)
}

func (c *Client) Sign(ctx context.Context, s Sign) (Signing, error) {
	return ask[Signing](ctx, c, "POST", "/v1/dns/signing", s)
}
