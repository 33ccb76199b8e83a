package node

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"msgw/internal/admin"
	"msgw/raftstore"
	"msgw/smtpnode"
)

// restrictions is what the receiver holds mail to. It fails on what another version of
// msgw wrote and this one does not know.
func restrictions(r raftstore.Restrictions) (smtpnode.Restrictions, error) {
	out := smtpnode.Restrictions{RequireTLS: r.RequireTLS == raftstore.Yes, MaxSize: r.MaxSize, MaxRecipients: r.MaxRecipients,
		RejectDots: r.Dots == raftstore.DotsReject}
	for _, s := range lifted(r.Allow) {
		p, err := smtpnode.ParseAllow(s)
		if err != nil {
			return out, err
		}
		out.Allow = append(out.Allow, p...)
	}
	if out.ClientNames = lifted(r.Clients); out.ClientNames == nil {
		return out, nil
	}
	var err error
	out.ClientCAs, err = clientCAs(r.ClientCA)
	return out, err
}

// clientCAs returns the CAs that issue clients' certificates; nil: those that the system
// trusts.
func clientCAs(pem string) (*x509.CertPool, error) {
	if pem == "" || pem == raftstore.SystemCAs {
		return nil, nil
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("client-ca: expected certificates in PEM form")
	}
	return p, nil
}

// checkRestrictions checks what an operator wants, and also what does not count yet: a CA
// does once a name of a client is asked for, here or for all, and all mail would wait then.
func checkRestrictions(r raftstore.Restrictions) error {
	if _, err := restrictions(r); err != nil {
		return err
	}
	if _, err := clientCAs(r.ClientCA); err != nil {
		return err
	}
	for _, name := range lifted(r.Clients) {
		if err := CheckHostName(name); err != nil {
			return fmt.Errorf("client-name: %w", err)
		}
	}
	return nil
}

// lifted returns a list without the word that stands for no list.
func lifted(list []string) []string {
	if slices.Equal(list, []string{raftstore.Any}) {
		return nil
	}
	return list
}

// offered is the Offer of a state.
type offered struct {
	state *raftstore.State
	smtpnode.Offer
}

// Offer returns what every client is told.
func (n mailboxes) Offer() smtpnode.Offer {
	s := n.store.State()
	if o := n.offered.Load(); o != nil && o.state == s {
		return o.Offer
	}
	o := smtpnode.Offer{MaxSize: s.Restrictions.MaxSize, MaxRecipients: s.Restrictions.MaxRecipients, ClientCertificate: lifted(s.Restrictions.Clients) != nil}
	for _, m := range s.Mailboxes {
		o.ClientCertificate = o.ClientCertificate || lifted(m.Restrictions.Clients) != nil
	}
	n.offered.Store(&offered{s, o})
	return o
}

// restricted keeps, for each mailbox, the last mail that its restrictions refused: a
// sender that is refused for now waits, and gives up after a day.
type restricted struct {
	mu   sync.Mutex
	last map[string]refused // by mailbox id
}

type refused struct {
	first, last time.Time // each less than restrictedFor after the one before
	times       int
	peer        netip.Addr // of the last
	why         string
}

// restrictedFor is how long the last refusal is shown.
const restrictedFor = time.Hour

// Restricted hears of mail that was refused.
func (n mailboxes) Restricted(id string, peer netip.Addr, why error) {
	x := &n.restricted
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.last == nil {
		x.last = map[string]refused{}
	}
	now, r := time.Now(), x.last[id]
	if now.Sub(r.last) > restrictedFor {
		r = refused{first: now}
	}
	x.last[id] = refused{r.first, now, r.times + 1, peer, strings.TrimPrefix(why.Error(), smtpnode.ErrRestricted.Error()+": ")}
}

// restrictedTrouble says what was refused lately.
func (n *Node) restrictedTrouble() (trouble []string) {
	x := &n.restricted
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, r := range x.last {
		if time.Since(r.last) > restrictedFor {
			delete(x.last, id)
			continue
		}
		trouble = append(trouble, fmt.Sprintf("%s refuses mail (%d since %s), the last at %s from %s: %s", id, r.times,
			r.first.Local().Format(time.DateTime), r.last.Local().Format(time.TimeOnly), r.peer, r.why))
	}
	slices.Sort(trouble)
	return trouble
}

// Restrictions returns those of the appliance, with the defaults.
func (n operator) Restrictions(context.Context) (admin.Restrictions, error) {
	return admin.Restrictions(n.store.State().Restrictions), nil
}

// SetRestrictions changes those of the appliance.
func (n operator) SetRestrictions(ctx context.Context, r admin.Restrictions) (admin.Change, error) {
	return n.restrict(ctx, "", n.store.State().Restrictions, admin.SetMailbox{Restrictions: r})
}

// SetMailbox changes those of a mailbox, and its description.
func (n operator) SetMailbox(ctx context.Context, id string, r admin.SetMailbox) (admin.Change, error) {
	m, err := n.find(id)
	if err != nil {
		return admin.Change{}, err
	}
	return n.restrict(ctx, m.ID, m.Restrictions, r)
}

func (n operator) restrict(ctx context.Context, id string, from raftstore.Restrictions, m admin.SetMailbox) (admin.Change, error) {
	to := raftstore.Restrictions(m.Restrictions)
	if err := checkRestrictions(to); err != nil {
		return admin.Change{}, admin.Errorf(http.StatusBadRequest, "", "%v", err)
	}
	if most := cmp.Or(n.store.State().Restrictions.MaxSize, smtpnode.DefaultMaxSize); id != "" && to.MaxSize > most {
		return admin.Change{}, admin.Errorf(http.StatusBadRequest, "raise it for all with `msgw mailbox set default --max-size` first",
			"max-size %d: this appliance takes messages of %d octets at most", to.MaxSize, most)
	}
	if m.Description != nil {
		if err := checkDescription(*m.Description); err != nil {
			return admin.Change{}, err
		}
	}
	c, err := n.change(ctx, raftstore.SetRestrictions{ID: id, From: from, To: to, Description: m.Description})
	if err == nil {
		n.log.Info("restrictions changed", "mailbox", cmp.Or(id, "default"), "applied", c.Applied, "missing", c.Missing)
	}
	return c, err
}
