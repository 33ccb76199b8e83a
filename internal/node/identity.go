package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"msgw/internal/ca"
	"msgw/internal/durable"
	"msgw/internal/seal"
	"msgw/raftstore"
)

// identity is who this node is. It lies in the state directory, 0600, and never
// leaves it but for the public halves.
type identity struct {
	Cluster string         `json:"cluster"`
	Name    string         `json:"name"`
	ID      string         `json:"id"` // raft server id, random per installation
	Role    raftstore.Role `json:"role"`
	PeerKey string         `json:"peer_key"` // PEM, PKCS #8
	NodeKey string         `json:"node_key"` // age identity

	peer *ecdsa.PrivateKey
	node seal.NodeKey
	mu   sync.Mutex // guards ID, which a rejoin changes
}

func (id *identity) serverID() string {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.ID
}

// rename gives the node another server id, in its file too.
func (id *identity) rename(dir, serverID string) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	old := id.ID
	id.ID = serverID
	err := id.save(dir)
	if err != nil {
		id.ID = old
	}
	return err
}

const (
	identityFile   = "identity.json"
	peerCertFile   = "peer.crt"
	lockFile       = "lock"
	drainFile      = "drain.json"
	quarantineFile = "quarantine.json"
	// SocketFile is the name of the operator's socket in the state directory.
	SocketFile = "msgw.sock"
	journalDir = "journal" // this site's messages
	shadowDir  = "shadow"  // copies of the other site's
	certsDir   = "certs"
)

func newIdentity(cluster, name string, role raftstore.Role) (*identity, error) {
	id := &identity{Cluster: cluster, Name: name, ID: randomHex(8), Role: role}
	var err error
	if id.peer, err = ca.NewKey(); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(id.peer)
	if err != nil {
		return nil, err
	}
	id.PeerKey = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if id.node, err = seal.NewNodeKey(); err != nil {
		return nil, err
	}
	id.NodeKey = id.node.String()
	return id, nil
}

func (id *identity) save(dir string) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return durable.ReplaceFile(filepath.Join(dir, identityFile), append(b, '\n'))
}

func loadIdentity(dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, operatorError(fmt.Errorf("%s holds no node", dir),
			"make one with `msgw init` or `msgw join TOKEN`; if it held one, "+lostHint)
	}
	if err != nil {
		return nil, err
	}
	id := &identity{}
	if err := json.Unmarshal(b, id); err != nil {
		return nil, operatorError(fmt.Errorf("%s does not parse", path), lostHint) // the cause could quote a key
	}
	p, _ := pem.Decode([]byte(id.PeerKey))
	if p == nil {
		return nil, operatorError(fmt.Errorf("%s: the peer key does not parse", path), lostHint)
	}
	k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		return nil, operatorError(fmt.Errorf("%s: the peer key does not parse", path), lostHint)
	}
	var ok bool
	if id.peer, ok = k.(*ecdsa.PrivateKey); !ok {
		return nil, fmt.Errorf("%s: the peer key is of another kind", path)
	}
	if id.node, err = seal.ParseNodeKey(id.NodeKey); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return id, nil
}

// peerCertificate pairs the stored peer certificate with its key; the CA's
// certificate goes along, so that a node that joins can pin it.
func (id *identity) peerCertificate(dir, root string) (*tls.Certificate, error) {
	b, err := os.ReadFile(filepath.Join(dir, peerCertFile))
	if err != nil {
		return nil, err
	}
	leaf, err := ca.ParseCertificate(string(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", peerCertFile, err)
	}
	r, err := ca.ParseCertificate(root)
	if err != nil {
		return nil, err
	}
	if !id.peer.PublicKey.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("%s does not belong to this node's key", peerCertFile)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, r.Raw}, PrivateKey: id.peer, Leaf: leaf}, nil
}

// lockTime is how long a node that starts waits for the state directory: a command may
// just be reading the journals of a node that did not run.
const lockTime = 10 * time.Second

// awaitState takes the state directory for this process, as soon as it is free.
func awaitState(ctx context.Context, dir string) (*os.File, error) {
	for end := time.Now().Add(lockTime); ; {
		lock, err := lockState(dir)
		var taken *OperatorError
		if !errors.As(err, &taken) || ctx.Err() != nil {
			return lock, err
		}
		if time.Now().After(end) {
			taken.MayPass = true // whoever holds it may end
			return nil, taken
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// lockState takes the state directory for this process. The lock goes with it.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, operatorError(fmt.Errorf("%s is in use by another msgw", dir), "if it is a node, `msgw status --dir "+dir+"` asks it once it has started; if it is `msgw journal` or `msgw backup`, wait until that has ended")
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}
