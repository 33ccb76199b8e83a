package node

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/miekg/dns"

	"msgw/dnsplugin"
	"msgw/internal/admin"
	"msgw/internal/delegation"
	"msgw/raftstore"
)

// Signing says how the zone is signed, and what comes next.
func (n operator) Signing(context.Context) (admin.Signing, error) {
	return n.signing(), nil
}

func (n operator) signing() admin.Signing {
	s := n.store.State()
	g := s.Signing
	out := admin.Signing{Zone: s.Zone.Name, Phase: string(g.Phase), MaxTTL: g.MaxTTL, Since: g.Since}
	for i, k := range g.Keys {
		out.Keys = append(out.Keys, admin.SigningKey{Tag: dnskeyOf(s.Zone.Name, k).KeyTag(), Created: k.Created,
			Signs: i == g.Active(), DS: dsOf(s.Zone.Name, k)})
	}
	if at, ok, why := g.Ready(); ok {
		out.Next, out.Waiting = at, why
	} else {
		out.Waiting = why
	}
	out.Do = nextSteps(g)
	if !n.witness {
		out.Trouble = strings.Join(n.signingTrouble(g), "")
	}
	return out
}

// nextSteps says what an operator does next in a phase.
func nextSteps(g raftstore.Signing) []string {
	switch g.Phase {
	case raftstore.Signed:
		if g.DSFrom.IsZero() {
			return []string{"the parent must not have a DS yet: not every site is known to sign; look again with `msgw dns sign`"}
		}
		return []string{fmt.Sprintf("put the DS that `msgw dns records` shows into the parent zone, if it is not there, but not before %s", g.DSFrom.Local().Format(time.DateTime))}
	case raftstore.NewKey:
		return []string{"when it is time: `msgw dns rollover`; leave the DS in the parent zone as it is until then"}
	case raftstore.NewDS:
		return []string{"replace the DS in the parent zone by the one that `msgw dns records` shows", "then: `msgw dns rollover`, which looks at the parent, and once more when it is time"}
	case raftstore.Leaving:
		return []string{"remove the DS from the parent zone", "then: `msgw dns sign off`, which looks at the parent, and once more when it is time"}
	}
	return nil
}

func dnskeyOf(zone string, k raftstore.SigningKey) *dns.DNSKEY {
	return dnsplugin.DNSKEY(zone+".", k.Public)
}

// dsOf returns the data of a key's DS record.
func dsOf(zone string, k raftstore.SigningKey) string {
	return delegation.DS(dnskeyOf(zone, k).ToDS(dns.SHA256))
}

// Sign takes the next step towards what is wanted: on, off or rollover.
func (n operator) Sign(ctx context.Context, r admin.Sign) (admin.Signing, error) {
	if n.witness {
		return admin.Signing{}, admin.Errorf(http.StatusConflict, "ask a site", "a witness has no keys of the zone")
	}
	if err := n.settle(ctx); err != nil {
		return admin.Signing{}, err
	}
	step, err := n.step(ctx, r)
	if err != nil {
		return admin.Signing{}, err
	}
	c, err := n.change(ctx, step)
	if err != nil {
		return admin.Signing{}, err
	}
	n.log.Warn("signing of the zone changed", "from", step.From, "to", step.To, "forced", step.Force, "applied", c.Applied, "missing", c.Missing)
	if len(c.Missing) == 0 {
		if err := n.settle(ctx); err != nil {
			return admin.Signing{}, err
		}
	}
	if step.To == raftstore.NewDS || step.To == raftstore.Leaving {
		// How long the old DS lives can only be seen while it is there.
		if _, err := n.observeParent(ctx); err != nil {
			return admin.Signing{}, err
		}
	}
	out := n.signing()
	out.Missing = c.Missing
	return out, nil
}

// step works out the next step.
func (n operator) step(ctx context.Context, r admin.Sign) (raftstore.SignStep, error) {
	s := n.store.State()
	g := s.Signing
	step := raftstore.SignStep{From: g.Phase, Version: g.Version}
	no := func(hint, format string, a ...any) (raftstore.SignStep, error) {
		return step, admin.Errorf(http.StatusConflict, hint, format, a...)
	}
	switch {
	case r.Want == "on" && g.Phase == raftstore.Unsigned:
		step.To, step.MaxTTL, step.OldTTL = raftstore.Signed, r.MaxTTL, n.zone.Zone().HighestTTL()
		if step.MaxTTL == 0 {
			step.MaxTTL = raftstore.DefaultMaxTTL
		}
		return n.withKeys(s, step, true, 0)
	case r.Want == "on" && g.Phase == raftstore.Leaving:
		step.To = raftstore.Signed
	case r.Want == "on":
		return no("", "the zone is signed already")
	case g.Phase == raftstore.Unsigned:
		return no("", "the zone is not signed")
	case r.Want == "off" && r.Force:
		step.To, step.Force = raftstore.Unsigned, true
	case r.Want == "off" && g.Phase == raftstore.Signed:
		step.To = raftstore.Leaving
	case r.Want == "off" && g.Phase == raftstore.Leaving:
		step.To = raftstore.Unsigned
		return step, n.parentHas(ctx, r.Changed)
	case r.Want == "off":
		return no("finish it with `msgw dns rollover`", "a rollover is under way")
	case r.Want == "rollover" && g.Phase == raftstore.Signed:
		step.To = raftstore.NewKey
		return n.withKeys(s, step, true, 0)
	case r.Want == "rollover" && g.Phase == raftstore.NewKey:
		step.To = raftstore.NewDS
	case r.Want == "rollover" && g.Phase == raftstore.NewDS:
		step.To = raftstore.Signed
		if err := n.parentHas(ctx, r.Changed); err != nil {
			return step, err
		}
		return n.withKeys(n.store.State(), step, false, 1)
	case r.Want == "rollover":
		return no("`msgw dns sign on` takes that back", "the zone is on its way to being unsigned")
	default:
		return step, admin.Errorf(http.StatusBadRequest, "", "want %q: expected on, off or rollover", r.Want)
	}
	return step, nil
}

// withKeys gives a step the keys of its phase: those of now without the first drop ones,
// and perhaps a new one.
func (n operator) withKeys(s *raftstore.State, step raftstore.SignStep, add bool, drop int) (_ raftstore.SignStep, err error) {
	var private []*ecdsa.PrivateKey
	if len(s.Signing.Keys) > 0 {
		if private, err = n.zoneKeys(s.Signing); err != nil {
			return step, err
		}
	}
	private = private[drop:len(private):len(private)]
	step.Keys = s.Signing.Keys[drop:len(s.Signing.Keys):len(s.Signing.Keys)]
	if add {
		public, key, err := raftstore.NewSigningKey(time.Now())
		if err != nil {
			return step, err
		}
		step.Keys, private = append(step.Keys, public), append(private, key)
	}
	names, to := recipients(s, raftstore.Node{}, "")
	step.Sealed, err = sealKeys(private, s.Signing.Version+1, names, to)
	return step, err
}

// settle notes that all sites have the present phase, if they have, and can sign in it.
func (n operator) settle(ctx context.Context) error {
	s := n.store.State()
	g := s.Signing
	if g.Phase == raftstore.Unsigned || !g.Reached.IsZero() {
		return nil
	}
	if c := n.awaitSites(s.Index); len(c.Missing) > 0 {
		return nil
	}
	for _, name := range s.Sites() {
		r, err := n.ask(ctx, name)
		if err != nil || r.Unsigned {
			return nil
		}
	}
	_, err := n.change(ctx, raftstore.SignReached{Phase: g.Phase, Since: g.Since})
	return err
}

// parentHas notes that the parent has the DS that the phase wants and nothing else, as it
// looks, or as the operator says. The error is what it has instead.
func (n operator) parentHas(ctx context.Context, said time.Time) error {
	if !said.IsZero() {
		g := n.store.State().Signing
		_, err := n.change(ctx, raftstore.SignParent{Phase: g.Phase, Since: g.Since, Right: true, Said: said})
		return err
	}
	const hint = "`msgw dns check` shows all; what cannot be seen from here, say yourself: --ds-changed-at, or --ds-removed-at"
	wrong, err := n.observeParent(ctx)
	switch {
	case err != nil:
		return err
	case len(wrong) > 0:
		return admin.Errorf(http.StatusConflict, hint, "the parent zone is not ready: %s", wrong[0])
	}
	return nil
}

// observeParent looks at the parent's DS records from all nodes, notes what is found, and
// returns what is not as the phase wants it. Every node that could look must agree, and
// every server of the parent.
func (n operator) observeParent(ctx context.Context) (wrong []string, err error) {
	s := n.store.State()
	g := s.Signing
	note := raftstore.SignParent{Phase: g.Phase, Since: g.Since}
	looked := 0
	for _, v := range n.lookFromAll(ctx) {
		if v.Error != "" {
			wrong = append(wrong, fmt.Sprintf("%s could not look: %s", v.Node, v.Error))
			continue
		}
		looked++
		for _, srv := range v.Servers {
			if len(dsDifferences(s.Zone.Name, g, true, delegation.View{Servers: []delegation.Server{srv}})) > 0 {
				note.TTL = max(note.TTL, srv.DSTTL) // of a DS that has to go
			}
			if srv.Error != "" {
				wrong = append(wrong, fmt.Sprintf("%s (%s), seen from %s: %s", srv.Name, srv.Address, v.Node, srv.Error))
			}
		}
		wrong = append(wrong, dsDifferences(s.Zone.Name, g, true, v.View)...)
	}
	if looked == 0 {
		return wrong, nil
	}
	note.Right = len(wrong) == 0
	_, err = n.change(ctx, note)
	return wrong, err
}
