package admin

import (
	"context"
	"log/slog"
	"net/http"
	"time"
)

// Disaster is what an operator does when a site is lost, or comes back.
type Disaster interface {
	// Evidence says what is known of the other nodes before the glass is broken.
	Evidence(ctx context.Context) (Evidence, error)
	// Recover breaks the glass: this node goes on without the others.
	Recover(ctx context.Context, r Recover) (Recovered, error)
	// Yield ends this node's vote, so that the other one can go on alone.
	Yield(ctx context.Context) (Yielded, error)
	// Rejoin gives this node's configuration up for that of another lineage.
	Rejoin(ctx context.Context, node string) (Rejoined, error)
	// Forks says what Rejoin would give up, for each node of another lineage.
	Forks(ctx context.Context) ([]Forked, error)
	// RemoveNode ends a membership. It may be called again until it is done.
	RemoveNode(ctx context.Context, r RemoveNode) (Removal, error)
}

// Evidence is what a node knows before it breaks the glass.
type Evidence struct {
	Node      string    `json:"node"`
	Epoch     uint64    `json:"epoch"`
	Applied   uint64    `json:"applied"`            // index of the last command here
	Quorum    bool      `json:"quorum"`             // changes can be made: there is nothing to recover from
	Confirmed time.Time `json:"confirmed,omitzero"` // when there was one, last; zero: not since the start
	Renounced string    `json:"renounced,omitempty"`
	Others    []Other   `json:"others"` // the other voters
	// Missing is how many commands were made elsewhere that are not here, at least.
	Missing uint64 `json:"missing"`
}

// Other is another voter, as it looks from here now.
type Other struct {
	Name  string    `json:"name"`
	Role  string    `json:"role"`
	Heard time.Time `json:"heard,omitzero"` // when it last answered; zero: not since the start
	Index uint64    `json:"index"`          // of the last entry that its log is known to have had
	// What was seen just now, in words; Alive says that something of it lives.
	Peer  string   `json:"peer"`
	SMTP  string   `json:"smtp,omitempty"`
	DNS   string   `json:"dns,omitempty"`
	Said  []string `json:"said,omitempty"` // by other nodes
	Alive bool     `json:"alive"`
}

// Recover names all other voters, which are given up. For those that live a token of
// theirs is needed.
type Recover struct {
	Names  []string `json:"names"`
	Tokens []string `json:"tokens"`
}

// Recovered is the new epoch.
type Recovered struct {
	Epoch   uint64 `json:"epoch"`
	EpochID string `json:"epoch_id"`
	Missing uint64 `json:"missing"` // as in Evidence
	// MayMiss says that the others could make changes without this node.
	MayMiss bool `json:"may_miss"`
}

// Yielded is the proof that a node votes no more.
type Yielded struct {
	Token string `json:"token"`
}

// Forked is a node of another lineage.
type Forked struct {
	Node    string   `json:"node"`
	Epoch   uint64   `json:"epoch"`
	EpochID string   `json:"epoch_id"`
	Lost    []string `json:"lost"` // what this node has changed and that one has not
}

// Rejoined lists what was given up.
type Rejoined struct {
	Epoch   uint64   `json:"epoch"`
	EpochID string   `json:"epoch_id"`
	Lost    []string `json:"lost"`
	File    string   `json:"file,omitempty"` // that lists it too
}

// RemoveNode asks for the end of a membership.
type RemoveNode struct {
	Name string `json:"name"`
	// Adopt hands over at the other site what waits there, instead of waiting until it
	// is fetched.
	Adopt bool `json:"adopt"`
	// Lost says that the node does not come back; what only it held is lost.
	Lost bool `json:"lost"`
}

// Removal is how far it is.
type Removal struct {
	Done    bool   `json:"done"`
	Waiting string `json:"waiting,omitempty"` // what for
	Adopted int    `json:"adopted,omitempty"` // messages that are handed over here now
}

func disasterRoutes(mux *http.ServeMux, n Disaster, log *slog.Logger) {
	get(mux, "GET /v1/recover", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Evidence(ctx) })
	post(mux, "POST /v1/recover", log, func(ctx context.Context, _ *http.Request, r Recover) (any, error) { return n.Recover(ctx, r) })
	post(mux, "POST /v1/yield", log, func(ctx context.Context, _ *http.Request, _ struct{}) (any, error) { return n.Yield(ctx) })
	get(mux, "GET /v1/forks", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Forks(ctx) })
	post(mux, "POST /v1/rejoin", log, func(ctx context.Context, _ *http.Request, node string) (any, error) { return n.Rejoin(ctx, node) })
	post(mux, "POST /v1/remove", log, func(ctx context.Context, _ *http.Request, r RemoveNode) (any, error) { return n.RemoveNode(ctx, r) })
}

func (c *Client) Evidence(ctx context.Context) (Evidence, error) {
	return ask[Evidence](ctx, c, "GET", "/v1/recover", nil)
}

func (c *Client) Recover(ctx context.Context, r Recover) (Recovered, error) {
	return ask[Recovered](ctx, c, "POST", "/v1/recover", r)
}

func (c *Client) Yield(ctx context.Context) (Yielded, error) {
	return ask[Yielded](ctx, c, "POST", "/v1/yield", struct{}{})
}

func (c *Client) Rejoin(ctx context.Context, node string) (Rejoined, error) {
	return ask[Rejoined](ctx, c, "POST", "/v1/rejoin", node)
}

func (c *Client) Forks(ctx context.Context) ([]Forked, error) {
	return ask[[]Forked](ctx, c, "GET", "/v1/forks", nil)
}

func (c *Client) RemoveNode(ctx context.Context, r RemoveNode) (Removal, error) {
	return ask[Removal](ctx, c, "POST", "/v1/remove", r)
}
