package node

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"sync"
	"time"

	"msgw/dnsplugin"
	"msgw/internal/seal"
	"msgw/raftstore"
)

// zoneKeys are the zone's private keys, opened with this node's key. Neither another node
// nor a quorum is needed to sign with them.
type zoneKeys struct {
	mu     sync.Mutex
	sealed []byte // that they were opened from
	keys   []*ecdsa.PrivateKey
	err    error
}

// zoneKeys returns the private keys in the order of g.Keys.
func (n *Node) zoneKeys(g raftstore.Signing) ([]*ecdsa.PrivateKey, error) {
	k := &n.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	if bytes.Equal(k.sealed, g.Secret) && k.sealed != nil {
		return k.keys, k.err
	}
	k.sealed = g.Secret
	if k.keys, k.err = openKeys(n.id, g); k.err != nil {
		n.log.Error("the zone cannot be signed here; validating resolvers use the other site", "err", k.err)
	}
	return k.keys, k.err
}

func openKeys(id *identity, g raftstore.Signing) ([]*ecdsa.PrivateKey, error) {
	clear, err := id.node.OpenSecret(g.Secret)
	if err != nil {
		return nil, fmt.Errorf("keys of the zone: %w", err)
	}
	return raftstore.ParseSigningKeys(clear, g.Keys)
}

// signZone gives a zone its keys as the phase wants them used. Without them it is answered
// unsigned: who does not validate is served, and who does asks the other site.
func (n *Node) signZone(z *dnsplugin.Zone, g raftstore.Signing, now time.Time) {
	if g.Phase == raftstore.Unsigned {
		return
	}
	keys, err := n.zoneKeys(g)
	if err != nil {
		return
	}
	z.MaxTTL, z.Unsigning = g.MaxTTL, g.Phase == raftstore.Leaving
	active := g.Active()
	for i, key := range keys {
		z.Keys = append(z.Keys, dnsplugin.Key{Signer: key, Signs: i == active, Parent: i == active && g.WantsDS(now)})
	}
}

// signingTrouble says that this node cannot sign.
func (n *Node) signingTrouble(g raftstore.Signing) []string {
	if g.Phase == raftstore.Unsigned {
		return nil
	}
	if _, err := n.zoneKeys(g); err != nil {
		return []string{fmt.Sprintf("the zone is answered unsigned here, which validating resolvers refuse: %v", err)}
	}
	return nil
}

// resealSigning seals the zone's keys to the sites and, if it is one, the new node, but not
// to a node that goes.
func (n *Node) resealSigning(s *raftstore.State, added raftstore.Node, goes string) (raftstore.SealedSigning, error) {
	if len(s.Signing.Keys) == 0 {
		return raftstore.SealedSigning{}, nil
	}
	keys, err := n.zoneKeys(s.Signing)
	if err != nil {
		return raftstore.SealedSigning{}, err
	}
	names, to := recipients(s, added, goes)
	return sealKeys(keys, s.Signing.Version, names, to)
}

func sealKeys(keys []*ecdsa.PrivateKey, version uint64, names, to []string) (raftstore.SealedSigning, error) {
	out := raftstore.SealedSigning{Version: version, SealedTo: names}
	clear, err := raftstore.EncodeSigningKeys(keys)
	if err == nil {
		out.Secret, err = seal.SealSecret(clear, to...)
	}
	return out, err
}

// withClearKeys returns s as it goes into an encrypted backup. A copy without the zone's
// keys would be one that cannot answer for the zone.
func withClearKeys(s *raftstore.State, id *identity) (*raftstore.State, error) {
	if len(s.Signing.Keys) == 0 {
		return s, nil
	}
	keys, err := openKeys(id, s.Signing)
	if err != nil {
		return nil, err
	}
	out := *s
	out.Signing.Clear, err = raftstore.EncodeSigningKeys(keys)
	return &out, err
}

// restoredSigning takes the zone's keys over from a backup. Without them the zone is not
// signed any more.
func restoredSigning(g raftstore.Signing, id *identity) (_ raftstore.Signing, unsigned bool, err error) {
	if g.Phase == raftstore.Unsigned {
		return g, false, nil
	}
	if g.Clear == nil {
		return raftstore.Signing{Version: g.Version + 1}, true, nil
	}
	keys, err := raftstore.ParseSigningKeys(g.Clear, g.Keys)
	if err != nil {
		return g, false, err
	}
	sealed, err := sealKeys(keys, g.Version, []string{id.Name}, []string{id.node.Recipient()})
	if err != nil {
		return g, false, err
	}
	g.Secret, g.SealedTo, g.Clear = sealed.Secret, sealed.SealedTo, nil
	return g, false, nil
}
