package seal

import (
	"bytes"
	"fmt"
	"io"
	"slices"

	"filippo.io/age"
)

// NodeKey is the key pair of one node. Secrets that every site needs, such as the
// key of the cluster's CA, are sealed to the node keys of the sites.
type NodeKey struct{ age *age.HybridIdentity }

// NewNodeKey makes a key pair.
func NewNodeKey() (NodeKey, error) {
	id, err := age.GenerateHybridIdentity()
	return NodeKey{id}, err
}

// ParseNodeKey reads what String wrote.
func ParseNodeKey(s string) (NodeKey, error) {
	id, err := age.ParseHybridIdentity(s)
	if err != nil {
		return NodeKey{}, fmt.Errorf("node key: not an age identity")
	}
	return NodeKey{id}, nil
}

// String returns the secret half, for the node's own key file only.
func (k NodeKey) String() string { return k.age.String() }

// Recipient returns the public half.
func (k NodeKey) Recipient() string { return k.age.Recipient().String() }

// maxSecret is the largest secret, in octets.
const maxSecret = 1 << 20

// SealSecret seals a secret of at most 1 MiB to the given node recipients.
func SealSecret(secret []byte, recipients ...string) ([]byte, error) {
	if len(secret) > maxSecret {
		return nil, fmt.Errorf("seal secret: %d octets, expected at most %d", len(secret), maxSecret)
	}
	var rs []age.Recipient
	for _, s := range slices.Compact(slices.Sorted(slices.Values(recipients))) {
		r, err := age.ParseHybridRecipient(s)
		if err != nil {
			return nil, fmt.Errorf("node recipient: %w", err)
		}
		rs = append(rs, r)
	}
	var b bytes.Buffer
	w, err := age.Encrypt(&b, rs...)
	if err != nil {
		return nil, fmt.Errorf("seal secret: %w", err)
	}
	if _, err = w.Write(secret); err == nil {
		err = w.Close()
	}
	return b.Bytes(), err
}

// OpenSecret opens what SealSecret sealed to k among others.
func (k NodeKey) OpenSecret(sealed []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), k.age)
	if err != nil {
		return nil, fmt.Errorf("open sealed secret: %w", err)
	}
	secret, err := io.ReadAll(io.LimitReader(r, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("open sealed secret: %w", err)
	}
	if len(secret) > maxSecret {
		return nil, fmt.Errorf("open sealed secret: more than %d octets", maxSecret)
	}
	return secret, nil
}
