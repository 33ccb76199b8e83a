// Package admin is how an operator talks to a node: HTTP and JSON on a socket in
// the state directory. Who may open the socket may do everything, so it is 0600.
package admin

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Node is what the socket offers. Errors that an operator can act on are *Error.
type Node interface {
	Status(ctx context.Context) (Status, error)
	DNS(ctx context.Context, others bool) (DNS, error)
	Delegated
	Mailboxes(ctx context.Context) ([]Mailbox, error)
	Mailbox(ctx context.Context, id string) (Mailbox, error)
	CreateMailbox(ctx context.Context, r CreateMailbox) (Credentials, error)
	ChangePassword(ctx context.Context, id string, r ChangePassword) (Credentials, error)
	ResetPassword(ctx context.Context, id string, r ResetPassword) (Credentials, error)
	SetMailboxStatus(ctx context.Context, id, status string) (Change, error)
	SetMailbox(ctx context.Context, id string, m SetMailbox) (Change, error)
	Restrictions(ctx context.Context) (Restrictions, error)
	SetRestrictions(ctx context.Context, r Restrictions) (Change, error)
	DeleteMailbox(ctx context.Context, id, cutOff string) (Change, error)
	SetWeight(ctx context.Context, node string, weight uint32) (Change, error)
	SetDrain(ctx context.Context, node string, d SetDrain) (Drain, error)
	SetACME(ctx context.Context, a ACME) (Change, error)
	CA(ctx context.Context) (pem string, err error)
	Copies(ctx context.Context) (CopySettings, error)
	SetCopies(ctx context.Context, c CopySettings) (Change, error)
	SetMailboxPolicy(ctx context.Context, id, policy string) (Change, error)
	Adopt(ctx context.Context, node string) (Copies, error)
	Zones
	Certified
	Journals
	// Release lets a quarantined message be listed again.
	Release(ctx context.Context, id string) error
	Disaster
	Backup(ctx context.Context, r BackupRequest, w io.Writer) (Backup, error)
	Invite(ctx context.Context, r Invite) (Invitation, error)
}

// Status of one node and what it sees. The keys are stable; more may be added.
type Status struct {
	Node      string   `json:"node"`
	Role      string   `json:"role"`
	Version   string   `json:"version"`
	Cluster   string   `json:"cluster"`
	Zone      string   `json:"zone"`
	Epoch     uint64   `json:"epoch"`
	EpochID   string   `json:"epoch_id"`
	Revision  uint32   `json:"revision"` // also the zone's SOA serial
	Applied   uint64   `json:"applied"`  // index of the last command in this node's file
	Leader    string   `json:"leader"`   // empty if none is known
	Quorum    bool     `json:"quorum"`   // changes can be made
	Voters    []string `json:"voters"`
	Accepting bool     `json:"accepting"`
	Reason    string   `json:"reason,omitempty"` // why it does not accept
	Drained   bool     `json:"drained"`
	Drain     *Drain   `json:"drain,omitempty"` // of a drained node
	Waiting   Waiting  `json:"waiting"`         // what the archive gets at this node
	Copies    *Copies  `json:"copies,omitempty"`
	Peers     []Peer   `json:"peers"`
	Certs     []Cert   `json:"certs"`
	MX        []MX     `json:"mx"`
	Trouble   []string `json:"trouble"` // what a person should look at; empty when all is well
}

// Waiting sums up messages that the archive has not fetched.
type Waiting struct {
	Mailboxes int       `json:"mailboxes"`
	Messages  int       `json:"messages"`
	Octets    int64     `json:"octets"`
	Oldest    time.Time `json:"oldest,omitzero"`
}

// Peer is another node as this one sees it.
type Peer struct {
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	Address   string   `json:"address"`
	Reachable bool     `json:"reachable"`
	Error     string   `json:"error,omitempty"`
	Epoch     uint64   `json:"epoch,omitempty"`
	EpochID   string   `json:"epoch_id,omitempty"`
	Applied   uint64   `json:"applied,omitempty"`
	Accepting bool     `json:"accepting"`
	Reason    string   `json:"reason,omitempty"`
	Drained   bool     `json:"drained"`
	Drain     *Drain   `json:"drain,omitempty"`
	Waiting   *Waiting `json:"waiting,omitempty"`
	Copies    *Copies  `json:"copies,omitempty"`
}

// SetDrain asks a node to be answered last, or not any more.
type SetDrain struct {
	Drained bool          `json:"drained"`
	For     time.Duration `json:"for,omitempty"` // 1 minute to 30 days; 0: until it is taken back
}

// Drain is the drain of a site, and whether the site can be switched off.
type Drain struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"` // when it ends by itself; zero: it does not
	// Safe: senders have had the time to notice, the other site takes the mail, and every
	// message has two copies.
	Safe    bool     `json:"safe"`
	Missing []string `json:"missing,omitempty"` // why it is not
	Alone   bool     `json:"alone,omitempty"`   // there is no other site: it will not be
}

// Copies is how a site and its copies at the other site are.
type Copies struct {
	State     string    `json:"state"` // SYNC, HOLD, DEGRADED, CATCHUP or ALONE
	Since     time.Time `json:"since"`
	Policy    string    `json:"policy"`    // of mailboxes without one of their own
	Single    int       `json:"single"`    // messages that are not known to be at the other site
	Compared  bool      `json:"compared"`  // whether single is known to be complete
	Lost      int       `json:"lost"`      // messages that only the other site has and that cannot be fetched
	Conflicts int       `json:"conflicts"` // messages that differ between the sites
	Damaged   int       `json:"damaged"`   // messages, here or there, that could not be repaired from the other copy
	Repaired  int       `json:"repaired"`  // those that were, since the node started
	Heard     time.Time `json:"heard"`     // when the other site last answered
	Trouble   string    `json:"trouble,omitempty"`
	Held      int       `json:"held"` // copies of the other site's messages here
	// Adopted: those are handed over here, since and for a reason.
	Adopted      bool      `json:"adopted"`
	AdoptedSince time.Time `json:"adopted_since,omitzero"`
	AdoptedWhy   string    `json:"adopted_why,omitempty"`
}

// CopySettings say how the sites keep copies for each other. In a change, zero means
// the default.
type CopySettings struct {
	Policy         string        `json:"policy"` // available or strict
	Refused        time.Duration `json:"refused"`
	Silent         time.Duration `json:"silent"`
	Wait           time.Duration `json:"wait"`
	Adopt          time.Duration `json:"adopt"`
	AdoptConfirmed time.Duration `json:"adopt_confirmed"`
	Return         time.Duration `json:"return"`
	Bandwidth      int64         `json:"bandwidth"` // octets per second; 0: not bounded
}

// Cert is a certificate that this node holds.
type Cert struct {
	Names    []string  `json:"names"`
	Source   string    `json:"source"` // cluster CA, self-signed, ACME, file or peer
	Issuer   string    `json:"issuer"` // empty: none is held yet
	NotAfter time.Time `json:"not_after,omitzero"`
	Key      string    `json:"key,omitempty"` // SHA-256 of its public key, as in TLSA records
	Served   bool      `json:"served"`
	Trouble  string    `json:"trouble,omitempty"`     // what a person should look at
	Last     time.Time `json:"last_attempt,omitzero"` // when it was last ordered
	Error    string    `json:"last_error,omitempty"`  // why that failed
	Next     time.Time `json:"next_attempt,omitzero"` // when it is ordered next
}

// MX is what the zone says of one host now.
type MX struct {
	Node         string    `json:"node"`               // empty if external
	External     bool      `json:"external,omitempty"` // an exchange that is no node
	Host         string    `json:"host"`
	Weight       uint32    `json:"weight"`
	State        string    `json:"state"`          // up, drained or down
	Class        string    `json:"class"`          // preferred, fallback or demoted
	Share        float64   `json:"share"`          // of the answers that put it first
	TTL          uint32    `json:"ttl"`            // seconds
	Row          int       `json:"row"`            // of the decision table in docs/steering.md; 0: not judged
	Reason       string    `json:"reason"`         // for the state
	Since        time.Time `json:"since,omitzero"` // of the state
	Why          string    `json:"why"`            // for the class
	Observations []string  `json:"observations,omitempty"`
}

// DNS is what this node would answer.
type DNS struct {
	Node   string   `json:"node"`
	Error  string   `json:"error,omitempty"` // why another node's is not known; the rest is empty then
	Zone   string   `json:"zone"`
	Serial uint32   `json:"serial"`
	Mode   string   `json:"mode"`
	Fresh  bool     `json:"fresh"` // false: health is not known, the configured weights are answered
	MX     []MX     `json:"mx"`
	Sample []string `json:"sample"`           // one drawn answer
	Faults []string `json:"faults"`           // records that cannot be served
	Notes  []string `json:"notes"`            // settings that are not published as they are, and why
	Others []DNS    `json:"others,omitempty"` // what the other sites would answer
}

// Mailbox as an operator sees it.
type Mailbox struct {
	ID          string    `json:"id"`
	Address     string    `json:"address"`
	Description string    `json:"description,omitempty"`
	Status      string    `json:"status"`
	Policy      string    `json:"policy,omitempty"` // empty: that of the appliance
	Created     time.Time `json:"created"`
	Keys        []Key     `json:"keys"`
	Sites       []Held    `json:"sites"` // what waits at each site
	// Restrictions are the mailbox's own; what it leaves open is as Effective says.
	Restrictions Restrictions `json:"restrictions"`
	Effective    Restrictions `json:"effective_restrictions"`
}

// Restrictions say from whom mail is taken, and how much in one message. A zero field of a
// mailbox's means that of the appliance, one of the appliance's the default.
type Restrictions struct {
	Allow         []string `json:"allow,omitempty"`          // addresses, networks, microsoft365, google; or any
	RequireTLS    string   `json:"require_tls,omitempty"`    // yes or no
	Clients       []string `json:"clients,omitempty"`        // host names of client certificates; or any
	ClientCA      string   `json:"client_ca,omitempty"`      // PEM; or system
	MaxSize       int64    `json:"max_size,omitempty"`       // octets of a message
	MaxRecipients int      `json:"max_recipients,omitempty"` // of a message; a mailbox's: that name the mailbox
	Dots          string   `json:"ambiguous_dots,omitempty"` // accept or reject
}

// SetMailbox asks for other restrictions of a mailbox, and for another description unless
// that is nil.
type SetMailbox struct {
	Description  *string      `json:"description,omitempty"`
	Restrictions Restrictions `json:"restrictions"`
}

// Key of a mailbox, without its secret.
type Key struct {
	ID      string    `json:"id"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
}

// Held is what waits for a mailbox at one site.
type Held struct {
	Site     string    `json:"site"`
	Error    string    `json:"error,omitempty"` // the site could not be asked
	Messages int       `json:"messages"`
	Octets   int64     `json:"octets"`
	Oldest   time.Time `json:"oldest,omitzero"`
	Copies   int       `json:"copies"`  // of the other site's messages
	Adopted  bool      `json:"adopted"` // those are among messages
	Locked   int       `json:"locked"`  // sealed to a key that the password does not open
}

// CreateMailbox asks for a mailbox. Without an id a new one is made, without a
// password one of 32 characters.
type CreateMailbox struct {
	ID          string `json:"id,omitempty"`
	Description string `json:"description,omitempty"`
	Password    string `json:"password,omitempty"`
}

// ChangePassword asks to wrap the mailbox's keys under another password.
type ChangePassword struct {
	Old string `json:"old"`
	New string `json:"new,omitempty"` // empty: made here
}

// ResetPassword asks for a new key and a new password; what waits under the old
// key becomes locked.
type ResetPassword struct {
	New string `json:"new,omitempty"` // empty: made here
}

// Credentials are what the archive needs. The password is given only if it was
// made here, and only this once.
type Credentials struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	Password string `json:"password,omitempty"`
	Change
}

// Change says where a change has arrived.
type Change struct {
	Applied []string `json:"applied"` // sites that have it
	Missing []string `json:"missing"` // sites that have not, yet
}

// ACME says where publicly trusted certificates come from.
type ACME struct {
	Directory string `json:"directory"`
	Email     string `json:"email,omitempty"`
	Roots     string `json:"roots,omitempty"`   // PEM
	Profile   string `json:"profile,omitempty"` // of the directory's
	Chain     string `json:"chain,omitempty"`   // common name of an issuer that the chain is to have, if there is a choice
}

// Invite asks for a token.
type Invite struct {
	Role string        `json:"role"`
	Life time.Duration `json:"life"`
	// Replaces names the node whose place the new one takes; its role counts then.
	Replaces string `json:"replaces,omitempty"`
}

// Invitation is a token for one join.
type Invitation struct {
	Token   string    `json:"token"`
	Role    string    `json:"role"`
	Expires time.Time `json:"expires"`
}

// Error is an answer that an operator can act on.
type Error struct {
	Status  int    `json:"-"` // HTTP
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"`
	// Password was made for a change whose outcome is not known: if it was made,
	// this opens the mailbox ID. It is in no log.
	Password string `json:"password,omitempty"`
	ID       string `json:"id,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error.
func Errorf(status int, hint, format string, args ...any) *Error {
	return &Error{Status: status, Message: fmt.Sprintf(format, args...), Hint: hint}
}
