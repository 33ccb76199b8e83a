package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"msgw/internal/ca"
	"msgw/internal/durable"
)

// Keys of this node. They never leave it.
const (
	hostKey   = "host.key"   // of the certificates for its host names
	nextKey   = "next.key"   // announced; takes the place of hostKey
	sharedKey = "shared.key" // of those for names that the sites share
)

// keyring is the directory of the keys.
type keyring struct{ dir string }

// load reads a key, or makes it once.
func (r keyring) load(name string) (crypto.Signer, error) {
	k, err := r.read(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	made, err := ca.NewKey()
	if err != nil {
		return nil, err
	}
	return made, r.write(name, made)
}

func (r keyring) read(name string) (crypto.Signer, error) {
	path := filepath.Join(r.dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseKey(path, b)
}

func (r keyring) write(name string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return durable.ReplaceFile(filepath.Join(r.dir, name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (r keyring) remove(name string) error {
	if err := os.Remove(filepath.Join(r.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(r.dir)
}

// parseKey reads a private key in PEM. path is for errors.
func parseKey(path string, b []byte) (crypto.Signer, error) {
	for p, rest := pem.Decode(b); p != nil; p, rest = pem.Decode(rest) {
		var k any
		var err error
		switch p.Type {
		case "PRIVATE KEY":
			k, err = x509.ParsePKCS8PrivateKey(p.Bytes)
		case "EC PRIVATE KEY":
			k, err = x509.ParseECPrivateKey(p.Bytes)
		case "RSA PRIVATE KEY":
			k, err = x509.ParsePKCS1PrivateKey(p.Bytes)
		default:
			continue // EC PARAMETERS, a certificate in the same file
		}
		if err != nil { // which may tell of the key
			return nil, fmt.Errorf("%s: the key does not parse", path)
		}
		if s, ok := k.(crypto.Signer); ok {
			return s, nil
		}
		return nil, fmt.Errorf("%s: the key cannot sign", path)
	}
	return nil, fmt.Errorf("%s: expected a private key in PEM, without a password", path)
}

// KeyTypes are the kinds of keys that NewKey makes.
var KeyTypes = []string{"p256", "p384", "rsa2048", "rsa4096"}

func newKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "", "p256":
		return ca.NewKey()
	case "p384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "rsa4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("key %q: expected one of %v", kind, KeyTypes)
}

// sumOf is the SHA-256, in hex, of a key's SubjectPublicKeyInfo.
func sumOf(key crypto.Signer) string {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "" // of a key that certificates have: cannot happen
	}
	return sum(der)
}

func sum(spki []byte) string {
	s := sha256.Sum256(spki)
	return hex.EncodeToString(s[:])
}
