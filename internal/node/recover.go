package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"msgw/internal/admin"
	"msgw/internal/ca"
	"msgw/internal/health"
	"msgw/raftstore"
)

// lookTime is how long the last look at the other nodes takes, at most.
const lookTime = 4 * time.Second

// Evidence looks at the other voters once more, from here.
func (n operator) Evidence(ctx context.Context) (admin.Evidence, error) {
	s, st, pos := n.store.State(), n.store.Status(), n.store.Position()
	e := admin.Evidence{Node: n.id.Name, Epoch: s.Epoch.Number, Applied: s.Index, Quorum: st.Quorum, Confirmed: st.Confirmed, Others: []admin.Other{}}
	if ren := n.store.Renounced(); ren != nil {
		e.Renounced = ren.Why
	}
	for _, node := range s.SortedNodes() {
		if node.Name != n.id.Name {
			e.Others = append(e.Others, admin.Other{Name: node.Name, Role: string(node.Role), Heard: n.lineage.heard(node.Name), Index: n.store.Reached(node.ID).LastIndex})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var wg sync.WaitGroup
	reports := make([]report, len(e.Others))
	for i := range e.Others {
		wg.Go(func() { reports[i] = n.look(ctx, &e.Others[i]) })
	}
	wg.Wait()
	for i, r := range reports {
		for name, v := range r.Views { // empty if it did not answer
			j := slices.IndexFunc(e.Others, func(o admin.Other) bool { return o.Name == name })
			if j < 0 || j == i {
				continue
			}
			o := &e.Others[j]
			o.Said = append(o.Said, fmt.Sprintf("%s says: %s", e.Others[i].Name, viewText(v)))
			o.Alive = o.Alive || v.Peer || v.Public && v.Usable
		}
	}
	for _, o := range e.Others {
		if o.Index > pos.Log.LastIndex {
			e.Missing = max(e.Missing, o.Index-pos.Log.LastIndex)
		}
	}
	return e, nil
}

func viewText(v health.View) string {
	switch {
	case v.Peer:
		return "it answers on its peer port"
	case v.Public && v.Usable:
		return "its public ports answer"
	}
	return "it does not answer"
}

// look asks a node and its public ports.
func (n *Node) look(ctx context.Context, o *admin.Other) (r report) {
	node := n.store.State().Nodes[o.Name]
	var wg sync.WaitGroup
	var peerErr error
	var smtpErr, dnsErr error
	wg.Go(func() { r, peerErr = n.ask(ctx, o.Name) })
	targets := n.targets()
	i := slices.IndexFunc(targets, func(t health.Target) bool { return t.Name == o.Name })
	site := node.Role == raftstore.Site && i >= 0 // it may be removed at this moment
	if site {
		t := targets[i]
		wg.Go(func() {
			smtpErr = anyAnswers(t.SMTP, func(a string) error { return health.ProbeSMTP(ctx, a, t.Host, n.host()) })
		})
		wg.Go(func() {
			dnsErr = anyAnswers(t.DNS, func(a string) error { return health.ProbeDNS(ctx, a, n.store.State().Zone.Name) })
		})
	}
	wg.Wait()
	said := func(err error) string {
		if err == nil {
			o.Alive = true
			return "answers"
		}
		return "does not answer: " + err.Error()
	}
	if o.Peer = said(peerErr); peerErr == nil && r.Renounced != "" {
		o.Peer += "; it has renounced its vote: " + r.Renounced
	}
	if site {
		o.SMTP, o.DNS = said(smtpErr), said(dnsErr)
	}
	return r
}

func anyAnswers(addresses []string, probe func(string) error) error {
	errs := []error{errors.New("no public address is configured")}
	for _, a := range addresses {
		err := probe(a)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errs[len(errs)-1]
}

// Recover breaks the glass, if the others are named and do not live, or have yielded.
func (n operator) Recover(ctx context.Context, r admin.Recover) (admin.Recovered, error) {
	n.rejoining.Lock()
	defer n.rejoining.Unlock()
	if n.witness {
		return admin.Recovered{}, admin.Errorf(http.StatusConflict, "run it at the site that is left", "a witness cannot go on alone: it cannot open what is sealed to the sites")
	}
	if why := n.lineage.formerly(); why != "" {
		return admin.Recovered{}, admin.Errorf(http.StatusConflict, "its mail can be fetched here; docs/disaster.md says how to end it", "this node is no member of the appliance any more: %s", why)
	}
	yielded := map[string]bool{}
	for _, t := range r.Tokens {
		name, err := n.checkYield(t)
		if err != nil {
			return admin.Recovered{}, admin.Errorf(http.StatusBadRequest, "", "yield token: %v", err)
		}
		yielded[name] = true
	}
	e, err := n.Evidence(ctx)
	if err != nil {
		return admin.Recovered{}, err
	}
	if e.Quorum {
		return admin.Recovered{}, admin.Errorf(http.StatusConflict, "nothing is to be recovered; a lost node is replaced with `msgw invite --replace NAME`. If the other node was lost only now, try again in some seconds", "there is a quorum: changes can be made")
	}
	if len(e.Others) == 0 && !slices.Equal(r.Names, []string{n.id.Name}) {
		return admin.Recovered{}, admin.Errorf(http.StatusBadRequest, "`msgw recover "+n.id.Name+"` makes it vote again", "this node is the only one: expected its name")
	}
	for _, name := range r.Names {
		if len(e.Others) == 0 {
			break
		}
		if !slices.ContainsFunc(e.Others, func(o admin.Other) bool { return o.Name == name }) {
			return admin.Recovered{}, admin.Errorf(http.StatusNotFound, "`msgw recover` alone shows them", "no other node is named %s", name)
		}
	}
	var names []string
	for _, o := range e.Others {
		if names = append(names, o.Name); !slices.Contains(r.Names, o.Name) && !yielded[o.Name] {
			return admin.Recovered{}, admin.Errorf(http.StatusBadRequest, "name every node that is given up, or give its yield token", "%s is not named: this node goes on without it, too", o.Name)
		}
		if o.Alive && !yielded[o.Name] {
			return admin.Recovered{}, admin.Errorf(http.StatusConflict, "mend the line to it; or run `msgw yield` there, and give its token here with --yield; or switch it off",
				"%s lives: peer port %s; SMTP %s; DNS %s; %s", o.Name, o.Peer, o.SMTP, o.DNS, strings.Join(o.Said, "; "))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// Two that vote make no change without each other.
	mayMiss := len(names) > 1 || !slices.Contains(n.store.Status().Voters, n.id.Name)
	why := "an operator gave up " + strings.Join(names, ", ")
	if len(names) == 0 {
		why = "an operator made the only node vote again"
	}
	if len(yielded) > 0 {
		why = "yield token of " + strings.Join(slices.Sorted(maps.Keys(yielded)), ", ")
	}
	if err := n.store.Recover(ctx, why); err != nil {
		return admin.Recovered{}, err
	}
	s := n.store.State()
	return admin.Recovered{Epoch: s.Epoch.Number, EpochID: s.Epoch.ID, Missing: e.Missing, MayMiss: mayMiss}, nil
}

// yield is the statement of a node that it votes no more, signed with its peer key.
type yield struct {
	Cluster string          `json:"cluster"`
	Name    string          `json:"name"`
	ID      string          `json:"id"` // server id that votes no more
	Epoch   raftstore.Epoch `json:"epoch"`
	Index   uint64          `json:"index"`
	At      time.Time       `json:"at"`
}

type signedYield struct {
	Yield       json.RawMessage `json:"y"`
	Certificate []byte          `json:"c"` // of the peer key, DER
	Signature   []byte          `json:"s"` // over SHA-256 of Yield
}

const yieldPrefix = "msgw-yield-1-"

// Yield renounces this node's vote and returns the proof.
func (n operator) Yield(context.Context) (admin.Yielded, error) {
	n.rejoining.Lock()
	defer n.rejoining.Unlock()
	s := n.store.State()
	switch {
	case n.witness:
		return admin.Yielded{}, admin.Errorf(http.StatusConflict, "switch it off instead", "a witness has nothing to yield")
	case len(s.Nodes) == 1:
		return admin.Yielded{}, admin.Errorf(http.StatusConflict, "", "this node is alone: there is nobody to yield to")
	case n.store.Renounced() == nil && n.store.Status().Quorum:
		return admin.Yielded{}, admin.Errorf(http.StatusConflict, "a yield is for a site that is cut off", "there is a quorum here: changes can be made")
	}
	ren, err := n.store.Renounce("an operator made it yield")
	if err != nil {
		return admin.Yielded{}, err
	}
	y, err := json.Marshal(yield{n.id.Cluster, n.id.Name, ren.ID, s.Epoch, n.store.State().Index, time.Now().UTC()})
	if err != nil {
		return admin.Yielded{}, err
	}
	sum := sha256.Sum256(y)
	sig, err := ecdsa.SignASN1(rand.Reader, n.id.peer, sum[:])
	if err != nil {
		return admin.Yielded{}, err
	}
	b, err := json.Marshal(signedYield{y, n.members.Certificate().Leaf.Raw, sig})
	if err != nil {
		return admin.Yielded{}, err
	}
	return admin.Yielded{Token: yieldPrefix + base64.RawURLEncoding.EncodeToString(b)}, nil
}

// checkYield returns who has yielded by a token.
func (n *Node) checkYield(text string) (string, error) {
	b64, ok := strings.CutPrefix(strings.TrimSpace(text), yieldPrefix)
	b, err := base64.RawURLEncoding.DecodeString(b64)
	var signed signedYield
	var y yield
	if !ok || err != nil || json.Unmarshal(b, &signed) != nil || json.Unmarshal(signed.Yield, &y) != nil {
		return "", fmt.Errorf("expected what `msgw yield` printed, one word that starts with %s", yieldPrefix)
	}
	cert, err := x509.ParseCertificate(signed.Certificate)
	if err != nil {
		return "", fmt.Errorf("its certificate does not parse: %w", err)
	}
	id, err := ca.VerifyPeer(n.members.Root(), []*x509.Certificate{cert}, time.Now())
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(signed.Yield)
	s := n.store.State()
	switch key, ok := cert.PublicKey.(*ecdsa.PublicKey); {
	case !ok || !ecdsa.VerifyASN1(key, sum[:], signed.Signature):
		return "", errors.New("its signature is wrong")
	case y.Cluster != n.id.Cluster || y.Name != id.Node || y.ID != id.ID:
		return "", errors.New("it does not belong to who signed it")
	case y.Epoch != s.Epoch:
		return "", fmt.Errorf("it is of epoch %s, this node of %s", y.Epoch, s.Epoch)
	case s.Nodes[y.Name].ID != y.ID || y.Name == n.id.Name:
		return "", fmt.Errorf("%s (%s) is not another member", y.Name, y.ID)
	}
	return y.Name, nil
}

// Forks says which nodes went on in another lineage, and what rejoining there gives up.
func (n operator) Forks(ctx context.Context) ([]admin.Forked, error) {
	s := n.store.State()
	out := []admin.Forked{}
	for _, name := range s.Sites() {
		if name == n.id.Name {
			continue
		}
		if _, err := n.ask(ctx, name); err != nil {
			continue // it cannot be rejoined now
		}
		seen, ok := n.lineage.seen(name)
		if r := s.Line().Relate(seen.line); !ok || r == raftstore.Same || r == raftstore.Descendant {
			continue
		}
		theirs, err := n.configurationOf(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, admin.Forked{Node: name, Epoch: theirs.Epoch.Number, EpochID: theirs.Epoch.ID, Lost: orEmpty(differences(s, theirs, n.before(s, theirs)))})
	}
	return out, nil
}

// Rejoin gives this node's lineage up for that of a site.
func (n operator) Rejoin(ctx context.Context, name string) (admin.Rejoined, error) {
	n.rejoining.Lock()
	defer n.rejoining.Unlock()
	s := n.store.State()
	node, ok := s.Nodes[name]
	switch {
	case !ok || name == n.id.Name:
		return admin.Rejoined{}, admin.Errorf(http.StatusNotFound, "`msgw rejoin` alone shows them", "no other node is named %s", name)
	case node.Role != raftstore.Site:
		return admin.Rejoined{}, admin.Errorf(http.StatusBadRequest, "name a site", "%s is a %s: it takes nobody in", name, node.Role)
	}
	if _, err := n.ask(ctx, name); err != nil {
		return admin.Rejoined{}, admin.Errorf(http.StatusServiceUnavailable, "mend the line to it first", "%s cannot be asked: %v", name, err)
	}
	seen, _ := n.lineage.seen(name)
	switch s.Line().Relate(seen.line) {
	case raftstore.Same:
		if n.store.Renounced() == nil {
			return admin.Rejoined{}, admin.Errorf(http.StatusConflict, "nothing is to be done", "%s and this node share one configuration, epoch %s", name, s.Epoch)
		}
	case raftstore.Descendant:
		return admin.Rejoined{}, admin.Errorf(http.StatusConflict, "that node rejoins here by itself", "this node's configuration continues that of %s", name)
	}
	theirs, err := n.configurationOf(ctx, name)
	if err != nil {
		return admin.Rejoined{}, err
	}
	var lost []string
	if s.Line().Relate(theirs.Line()) == raftstore.Fork {
		lost = differences(s, theirs, n.before(s, theirs))
	}
	if err := n.rejoin(ctx, name, "an operator chose the configuration of "+name); err != nil {
		return admin.Rejoined{}, err
	}
	out := admin.Rejoined{Epoch: n.store.State().Epoch.Number, EpochID: n.store.State().Epoch.ID, Lost: orEmpty(lost)}
	if len(lost) > 0 {
		out.File = rejoinedFile
	}
	return out, nil
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// forks counts the sites in reach that are of another lineage.
func (n *Node) forks() (count int) {
	s := n.store.State()
	for _, name := range s.Sites() {
		if seen, ok := n.lineage.seen(name); ok && name != n.id.Name && s.Line().Relate(seen.line) == raftstore.Fork {
			count++
		}
	}
	return count
}

// lineageTrouble says what a person should look at.
func (n *Node) lineageTrouble(st raftstore.Status) (trouble []string) {
	say := func(format string, args ...any) { trouble = append(trouble, fmt.Sprintf(format, args...)) }
	s := n.store.State()
	if why := n.lineage.formerly(); why != "" {
		say("this node is no member of the appliance any more: %s; it takes no mail and hands over what waits here", why)
	}
	if ren := n.store.Renounced(); ren != nil {
		say("this node votes no more until it has rejoined: %s", ren.Why)
	}
	if e := n.store.Epoch(); e != s.Epoch {
		say("a recovery to epoch %s is under way; if it does not end, restart this node", e)
	}
	for _, node := range s.SortedNodes() {
		if node.Leaving {
			say("%s is being removed and votes no more: `msgw node remove %s` goes on with it", node.Name, node.Name)
		}
	}
	for _, text := range st.SetBack {
		say("%s: it was set back to an earlier state and is refused until it has rejoined", text)
	}
	for _, name := range s.Sites() {
		seen, ok := n.lineage.seen(name)
		if !ok || name == n.id.Name {
			continue
		}
		switch s.Line().Relate(seen.line) {
		case raftstore.Fork:
			say("fork: %s went on in epoch %s and this node in %s, each with changes that the other lacks; mail goes on at both. `msgw rejoin` at either shows what it would give up, `msgw rejoin NODE` gives it up", name, seen.line.Epoch, s.Epoch)
		case raftstore.Descendant:
			say("%s is of epoch %s and rejoins this node's %s", name, seen.line.Epoch, s.Epoch)
		}
	}
	return trouble
}
