package admin

import (
	"context"
	"log/slog"
	"net/http"
)

// Zones is what operators put into the zone besides what follows from the nodes.
type Zones interface {
	Zone(ctx context.Context) (ZoneSettings, error)
	// SetZone replaces all of it, if it is still the version that was read.
	SetZone(ctx context.Context, z ZoneSettings) (ZoneChange, error)
}

// ZoneSettings are what is in the zone besides what follows from the nodes.
type ZoneSettings struct {
	Zone        string         `json:"zone"`    // in a change: not looked at
	Version     uint64         `json:"version"` // raised by every change
	NameServers []NameServer   `json:"name_servers"`
	Apex        []string       `json:"apex"` // addresses of the zone's own name; or sites alone
	CAA         CAA            `json:"caa"`
	TLSA        bool           `json:"tlsa"`
	MTASTS      MTASTS         `json:"mta_sts"`
	TLSReports  []string       `json:"tls_reports"` // URIs
	Records     []string       `json:"records"`     // in the syntax of zone files
	Exchanges   []MailExchange `json:"exchanges"`
	Notes       []string       `json:"notes"` // what is not published as it is set, and why; in a change: not looked at
}

// NameServer is a name of the zone's NS records.
type NameServer struct {
	Name string `json:"name"`
	Site string `json:"site,omitempty"` // whose addresses it has, if the zone has to say
}

// CAA says which CAs may issue certificates for names in the zone.
type CAA struct {
	Issue         []string `json:"issue"` // domains of CAs; auto: that of the ACME directory
	DenyWildcards bool     `json:"deny_wildcards"`
	Iodef         string   `json:"iodef,omitempty"` // URI
	Accounts      bool     `json:"accounts"`        // only the sites' own accounts
}

// MTASTS is the zone's policy.
type MTASTS struct {
	Mode   string `json:"mode,omitempty"` // none, testing or enforce; empty: no policy
	MaxAge uint32 `json:"max_age"`        // seconds; 0: a week
}

// MailExchange is a mail exchanger that is no node.
type MailExchange struct {
	Host      string   `json:"host"`
	Weight    uint32   `json:"weight"`
	Addresses []string `json:"addresses,omitempty"` // empty: looked up
	Port      int      `json:"port,omitempty"`      // where it is probed; 0: 25
}

// ZoneChange is what came of a change.
type ZoneChange struct {
	Change
	Notes []string `json:"notes"` // what is not published as it is set now, and why
}

func zoneRoutes(mux *http.ServeMux, n Node, log *slog.Logger) {
	get(mux, "GET /v1/zone", log, func(ctx context.Context, _ *http.Request) (any, error) { return n.Zone(ctx) })
	post(mux, "POST /v1/zone", log, func(ctx context.Context, _ *http.Request, z ZoneSettings) (any, error) { return n.SetZone(ctx, z) })
}

func (c *Client) Zone(ctx context.Context) (ZoneSettings, error) {
	return ask[ZoneSettings](ctx, c, "GET", "/v1/zone", nil)
}

func (c *Client) SetZone(ctx context.Context, z ZoneSettings) (ZoneChange, error) {
	return ask[ZoneChange](ctx, c, "POST", "/v1/zone", z)
}
