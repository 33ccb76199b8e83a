package node

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"msgw/dnsplugin"
	"msgw/internal/admin"
	"msgw/internal/health"
	"msgw/internal/shadow"
	"msgw/raftstore"
)

// How long a drain with an end may last.
const (
	minDrain = time.Minute
	maxDrain = 30 * 24 * time.Hour
)

// noticeTime is how long senders may still come after a drain began: an answer of before
// lives one TTL in a resolver, and another in a sender that asked just before its end.
var noticeTime = 2 * time.Duration(new(dnsplugin.Zone).TTL()) * time.Second

// SetDrain asks a node to drain itself, or not any more.
func (n operator) SetDrain(ctx context.Context, name string, d admin.SetDrain) (admin.Drain, error) {
	node, ok := n.store.State().Nodes[name]
	switch {
	case !ok:
		return admin.Drain{}, admin.Errorf(http.StatusNotFound, "`msgw node list` shows them", "no node is named %s", name)
	case node.Role != raftstore.Site:
		return admin.Drain{}, admin.Errorf(http.StatusBadRequest, "", "%s is a %s: it takes no mail", name, node.Role)
	}
	if err := checkDrain(d); err != nil {
		return admin.Drain{}, err
	}
	if name == n.id.Name {
		return n.setOwnDrain(d)
	}
	var out admin.Drain
	if err := (peerCalls{n.Node}).call(ctx, name, "/drain", d, &out); err != nil {
		return out, admin.Errorf(http.StatusBadGateway, "a drain belongs to the node itself; an unreachable one is put last by health anyway", "%v", err)
	}
	return out, nil
}

func checkDrain(d admin.SetDrain) error {
	switch {
	case !d.Drained && d.For != 0:
		return admin.Errorf(http.StatusBadRequest, "", "for %v: expected no time with the end of a drain", d.For)
	case d.For != 0 && (d.For < minDrain || d.For > maxDrain):
		return admin.Errorf(http.StatusBadRequest, "", "for %v: expected %v to %v, or no time for a drain without an end", d.For, minDrain, maxDrain)
	}
	return nil
}

func (n *Node) setOwnDrain(d admin.SetDrain) (admin.Drain, error) {
	err := checkDrain(d)
	if err != nil {
		return admin.Drain{}, err
	}
	if !d.Drained {
		if err := n.drain.end(); err != nil {
			return admin.Drain{}, err
		}
		n.log.Info("drain", "drained", false)
		n.health.Look(n.id.Name) // and tell the others, whatever its next pulse waits for
		return admin.Drain{}, nil
	}
	s, err := n.drain.set(d.For)
	if err != nil {
		return admin.Drain{}, err
	}
	n.log.Info("drain", "drained", true, "until", s.Until)
	n.health.Look(n.id.Name)
	h := n.holdings()
	return *n.describeDrain(s, n.copies(h), h.waiting().Messages), nil
}

// expireDrain says in the log that a drain's time is over.
func (n *Node) expireDrain() {
	over, err := n.drain.expire()
	if err != nil {
		n.log.Error("the drain has ended, and that cannot be kept", "err", err)
	}
	if over {
		n.log.Info("drain", "drained", false, "why", "its time is over")
	}
}

// describeDrain says how this node's drain is; nil without one.
func (n *Node) describeDrain(s drained, c *admin.Copies, waiting int) *admin.Drain {
	if !s.Drained || c == nil {
		return nil
	}
	other, have := n.other()
	out := &admin.Drain{Since: s.Since, Until: s.Until, Alone: !have}
	vs, _, fresh := n.health.Verdicts()
	if !fresh {
		vs = nil
	}
	asked, otherwise := askedAway(s.Since, n.id.Name, other.Name, vs)
	if out.Missing = stayFor(time.Now(), asked, *c, waiting, have); have && len(out.Missing) == 0 {
		out.Missing = otherwise
	}
	out.Safe = len(out.Missing) == 0
	return out
}

// askedAway says since when senders are asked to use the other site, and why they are
// not, if so. Two sites of which none is up are answered as if none were drained.
func askedAway(drained time.Time, self, other string, vs []health.Verdict) (since time.Time, not []string) {
	verdict := map[string]health.Verdict{}
	for _, v := range vs {
		verdict[v.Name] = v
	}
	own, their := verdict[self], verdict[other]
	switch {
	case their.Name == "":
		return drained, []string{fmt.Sprintf("it is not known whether %s takes the mail", other)}
	case their.State != health.Up:
		return drained, []string{fmt.Sprintf("%s does not take the mail instead: %s", other, their.Reason)}
	case own.State == health.Drained && their.Since.After(own.Since) && their.Since.After(drained):
		return their.Since, nil // it came up while this one was drained
	}
	return drained, nil
}

// stayFor says why a site, whose senders are asked away since a time, must not be switched
// off now, or nothing.
func stayFor(now, asked time.Time, c admin.Copies, waiting int, other bool) (why []string) {
	say := func(format string, args ...any) { why = append(why, fmt.Sprintf(format, args...)) }
	if !other {
		say("there is no other site that takes mail meanwhile; %s there, with one copy only", count(waiting, "message waits", "messages wait"))
		return why
	}
	if left := asked.Add(noticeTime).Sub(now); left > 0 {
		// A clock that was set back does not make it longer.
		say("senders may still come for %d s", int((min(left, noticeTime)+time.Second-1)/time.Second))
	}
	state := shadow.State(c.State)
	silent := c.Trouble == "" && (state == shadow.Hold || state == shadow.Degraded)
	if silent {
		say("the other site does not answer")
	}
	if c.Trouble != "" {
		say("the other site does not store: %s", c.Trouble)
	}
	if c.Single > 0 {
		say("%s one copy only", count(c.Single, "message has", "messages have"))
	}
	switch {
	case state == shadow.Sync && c.Compared, silent, c.Trouble != "":
	case !c.Compared:
		say("the sites have not compared what they hold yet")
	case c.Single == 0:
		say("the copies are in %s; `msgw status` at that node says why", c.State)
	}
	return why
}

func count(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}
