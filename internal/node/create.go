package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/ca"
	"msgw/internal/durable"
	"msgw/internal/peer"
	"msgw/internal/seal"
	"msgw/raftstore"
)

// InitOptions are the first settings of a cluster.
type InitOptions struct {
	Zone    string // delegated to the appliance
	Contact string // mail address of the hostmaster; empty: hostmaster@<parent zone>
	MXMode  string // tier or rank
	ACME    raftstore.ACME
}

// Init makes the first node of a new cluster and its configuration, and writes them
// to the state directory. Nothing is left there if it fails.
func Init(cfg *Config, o InitOptions) (err error) {
	if err := CheckHostName(o.Zone); err != nil {
		return operatorError(fmt.Errorf("zone: %w", err), "")
	}
	if o.MXMode != "tier" && o.MXMode != "rank" {
		return operatorError(fmt.Errorf("mx-mode: %q, expected tier or rank", o.MXMode), "")
	}
	if o.Contact == "" {
		_, parent, _ := strings.Cut(o.Zone, ".")
		o.Contact = "hostmaster@" + parent
	}
	release, err := claimState(cfg.State, &err)
	if err != nil {
		return err
	}
	defer release()
	now := time.Now()
	cluster := randomHex(8)
	id, err := newIdentity(cluster, cfg.Name, raftstore.Site)
	if err != nil {
		return err
	}
	caPEM, caKey, err := ca.New(cluster, now)
	if err != nil {
		return err
	}
	sealed, err := seal.SealSecret(caKey, id.node.Recipient())
	if err != nil {
		return err
	}
	self, err := cfg.member(id, o.Zone)
	if err != nil {
		return err
	}
	self.Weight, self.Joined = 1, now.UTC()
	authority, err := ca.Open(caPEM, caKey)
	if err != nil {
		return err
	}
	cert, err := authority.IssuePeer(ca.Identity{Cluster: cluster, Node: id.Name, ID: id.ID}, id.peer.Public(), now)
	if err != nil {
		return err
	}
	if err := raftstore.Create(cfg.State, id.ID, &raftstore.State{
		Cluster: cluster, Epoch: raftstore.Epoch{Number: 1, ID: randomHex(8)},
		Zone: raftstore.Zone{Name: o.Zone, Contact: o.Contact, MXMode: o.MXMode},
		CA:   raftstore.CA{Certificate: caPEM, Key: sealed, SealedTo: []string{id.Name}}, ACME: o.ACME,
		Nodes: map[string]raftstore.Node{id.Name: self}, Mailboxes: map[string]raftstore.Mailbox{}, Invites: map[string]raftstore.Invite{},
	}); err != nil {
		return err
	}
	return id.complete(cfg.State, cert)
}

// complete writes what makes a state directory a node; the identity comes last.
func (id *identity) complete(dir, cert string) error {
	if err := id.furnish(dir, cert); err != nil {
		return err
	}
	return id.save(dir)
}

// furnish writes what a node needs beside its configuration and its identity.
func (id *identity) furnish(dir, cert string) error {
	if err := durable.ReplaceFile(filepath.Join(dir, peerCertFile), []byte(cert)); err != nil {
		return err
	}
	if id.Role == raftstore.Site {
		for _, name := range []string{journalDir, shadowDir} {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				return err
			}
		}
	}
	return nil
}

// claimState makes sure that dir is an empty directory, held by this process. When
// release is called and *failed is set, what was made is removed again.
func claimState(dir string, failed *error) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, operatorError(fmt.Errorf("state: %w", err), "")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, operatorError(fmt.Errorf("state: %w", err), "")
	}
	if err := checkEmpty(dir, entries); err != nil {
		return nil, err
	}
	if err := checkOwner(dir); err != nil {
		return nil, err
	}
	lock, err := lockState(dir)
	if err != nil {
		return nil, err
	}
	return func() {
		if *failed != nil {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				os.RemoveAll(filepath.Join(dir, e.Name()))
			}
		}
		lock.Close()
		durable.SyncDir(filepath.Dir(dir))
	}, nil
}

func checkEmpty(dir string, entries []os.DirEntry) error {
	for _, e := range entries {
		if e.Name() != lockFile {
			return operatorError(fmt.Errorf("state: %s is not empty: it holds %s", dir, e.Name()),
				"a node is made in an empty directory; move what is there away if it is no longer wanted")
		}
	}
	return nil
}

// checkOwner keeps root from making a node in another user's directory: the service,
// which runs as that user, could not read it.
func checkOwner(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return operatorError(fmt.Errorf("state: %w", err), "")
	}
	sys, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || int(sys.Uid) == os.Geteuid() {
		return nil
	}
	owner := strconv.Itoa(int(sys.Uid))
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	return operatorError(fmt.Errorf("state: %s belongs to %s, and so must what is made in it", dir, owner),
		"run the command as that user, as in `runuser -u "+owner+" -- msgw init ...`")
}

// member is how this node describes itself to the others.
func (c *Config) member(id *identity, zone string) (raftstore.Node, error) {
	addr, err := c.PeerAddress()
	if err != nil {
		return raftstore.Node{}, operatorError(err, "")
	}
	n := raftstore.Node{Name: id.Name, ID: id.serverID(), Role: id.Role, Peer: addr, SealTo: id.node.Recipient()}
	if id.Role == raftstore.Site {
		n.Host = c.host(zone)
		if len(c.Public.IPv4)+len(c.Public.IPv6) == 0 && dns.IsSubDomain(dns.Fqdn(zone), dns.Fqdn(n.Host)) {
			return n, operatorError(errors.New("public.ipv4: missing, expected the addresses that the zone answers for this host"), "")
		}
		n.V4, n.V6, n.SMTPPort, n.DNSPort = c.Public.IPv4, c.Public.IPv6, c.Public.SMTPPort, c.Public.DNSPort
	}
	return n, nil
}

// announce tells the others when this node's addresses have changed.
func (n *Node) announce(ctx context.Context) {
	s := n.store.State()
	have, ok := s.Nodes[n.id.Name]
	if !ok || have.ID != n.id.serverID() || !n.store.Current() {
		return
	}
	want, err := n.cfg.member(n.id, s.Zone.Name)
	if err != nil {
		return // said at start
	}
	if want.Host == have.Host && want.Peer == have.Peer && slices.Equal(want.V4, have.V4) && slices.Equal(want.V6, have.V6) &&
		want.SMTPPort == have.SMTPPort && want.DNSPort == have.DNSPort {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := n.store.Propose(ctx, raftstore.UpdateNode{Node: want}); err != nil {
		n.log.Warn("this node's new addresses are not known to the others yet", "err", err)
		return
	}
	n.log.Info("this node's new addresses are known", "host", want.Host, "ipv4", want.V4, "ipv6", want.V6, "peer", want.Peer)
}

// token is an invitation as it is handed to the operator.
type token struct {
	Invite string         `json:"i"`
	Secret string         `json:"s"`
	CA     string         `json:"c"` // fingerprint
	Peers  []string       `json:"p"`
	Role   raftstore.Role `json:"r"`
}

const tokenPrefix = "msgw-join-1-"

func (t token) String() string {
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // plain data always encodes
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

func parseToken(s string) (token, error) {
	var t token
	b64, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	b, err := base64.RawURLEncoding.DecodeString(b64)
	if !ok || err != nil || json.Unmarshal(b, &t) != nil || t.Invite == "" || len(t.Peers) == 0 {
		return t, errors.New("token: expected what `msgw invite` printed, one word that starts with " + tokenPrefix)
	}
	return t, nil
}

// joinRequest is what a node that joins says of itself.
type joinRequest struct {
	Invite  string         `json:"invite"`
	Secret  string         `json:"secret"`
	Node    raftstore.Node `json:"node"`
	Request string         `json:"request"` // certificate request, PEM
}

type joinAnswer struct {
	Certificate string           `json:"certificate"`
	State       *raftstore.State `json:"state"`
}

// Join makes this node a member of the cluster that the token invites it to, and
// writes its state directory. Nothing is left there if it fails.
func Join(ctx context.Context, cfg *Config, tokenText string) (err error) {
	t, err := parseToken(tokenText)
	if err != nil {
		return operatorError(err, "")
	}
	release, err := claimState(cfg.State, &err)
	if err != nil {
		return err
	}
	defer release()
	id, err := newIdentity("", cfg.Name, t.Role)
	if err != nil {
		return err
	}
	self, err := cfg.member(id, "zone.invalid") // the real zone is known after joining
	if err != nil {
		return err
	}
	if cfg.Public.Host == "" {
		self.Host = ""
	}
	csr, err := id.request()
	if err != nil {
		return err
	}
	body, err := json.Marshal(joinRequest{t.Invite, t.Secret, self, csr})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var ans joinAnswer
	if err := firstPeer(ctx, t, body, &ans); err != nil {
		return err
	}
	if ans.State == nil {
		return errors.New("the cluster's answer holds no configuration")
	}
	id.Cluster = ans.State.Cluster
	if err := raftstore.Adopt(cfg.State, ans.State); err != nil {
		return err
	}
	return id.complete(cfg.State, ans.Certificate)
}

// firstPeer asks the nodes that a token names, until one has decided.
func firstPeer(ctx context.Context, t token, body []byte, ans *joinAnswer) error {
	var errs []error
	for _, addr := range t.Peers {
		err := peer.Post(ctx, peer.JoinClient(addr, t.CA), "https://join/join", body, ans)
		var ref *peer.Refusal
		switch {
		case err == nil:
			return nil
		case errors.As(err, &ref) && ref.Code != http.StatusServiceUnavailable:
			return operatorError(fmt.Errorf("not admitted: %s", ref.Text), "if the token was used or has expired, ask for a new one with `msgw invite` on a running node")
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return &OperatorError{Err: fmt.Errorf("no node of the cluster could admit this one: %w", errors.Join(errs...)),
		Hint: "check that the peer port of a running node is reachable from here", MayPass: true}
}

// request makes a certificate request for the peer key.
func (id *identity) request() (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, id.peer)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

func secretHash(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

// admit makes a node that shows an open invitation a member.
func (n *Node) admit(ctx context.Context, r joinRequest) (joinAnswer, error) {
	s := n.store.State()
	i, ok := s.Invites[r.Invite]
	if !ok || subtle.ConstantTimeCompare([]byte(i.Secret), []byte(secretHash(r.Secret))) != 1 {
		return joinAnswer{}, &raftstore.Rejection{Code: "missing", Message: "this invitation is not open here: it was used, it has expired, or it was never made"}
	}
	node := r.Node
	node.Joined, node.Role = time.Now().UTC(), i.Role
	if old, ok := s.Nodes[i.Replaces]; ok && node.Host == "" {
		node.Host = old.Host
	}
	if node.Role == raftstore.Site {
		node.Weight = 1
		if node.Host == "" {
			node.Host = node.Name + "." + s.Zone.Name
		}
	}
	if _, _, err := net.SplitHostPort(node.Peer); err != nil {
		return joinAnswer{}, &raftstore.Rejection{Code: "invalid", Message: "peer address: " + err.Error()}
	}
	cert, err := n.issuePeer(ca.Identity{Cluster: n.id.Cluster, Node: node.Name, ID: node.ID}, r.Request)
	if err != nil {
		return joinAnswer{}, err
	}
	sealed, err := n.resealCA(s, node, i.Replaces)
	if err != nil {
		return joinAnswer{}, err
	}
	keys, err := n.resealSigning(s, node, i.Replaces)
	if err != nil {
		return joinAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := n.store.Propose(ctx, raftstore.JoinNode{Invite: r.Invite, Node: node, CA: sealed, Signing: keys}); err != nil {
		return joinAnswer{}, err
	}
	n.log.Info("node admitted", "node", node.Name, "role", node.Role, "peer", node.Peer)
	return joinAnswer{cert, n.store.State()}, nil
}

// resealCA seals the CA's key to the sites and, if it is one, the new node, but not to a
// node that goes.
func (n *Node) resealCA(s *raftstore.State, added raftstore.Node, goes string) (raftstore.CA, error) {
	key, err := n.id.node.OpenSecret(s.CA.Key)
	if err != nil {
		return raftstore.CA{}, fmt.Errorf("cluster CA: %w", err)
	}
	out := s.CA
	var to []string
	out.SealedTo, to = recipients(s, added, goes)
	out.Key, err = seal.SealSecret(key, to...)
	return out, err
}

// recipients returns the names of the sites and, if it is one, the new node, but without a
// node that goes, sorted, and to whom secrets are sealed for them.
func recipients(s *raftstore.State, added raftstore.Node, goes string) (names, to []string) {
	names = slices.DeleteFunc(s.Sites(), func(name string) bool { return name == goes })
	for _, name := range names {
		to = append(to, s.Nodes[name].SealTo)
	}
	if added.Role == raftstore.Site {
		names, to = append(names, added.Name), append(to, added.SealTo)
		slices.Sort(names)
	}
	return names, to
}
