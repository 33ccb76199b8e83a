package raftstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// NewSigningKey makes a key of the zone: ECDSA on P-256.
func NewSigningKey(now time.Time) (SigningKey, *ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return SigningKey{}, nil, err
	}
	public, err := publicKey(k)
	return SigningKey{Public: public, Created: now.UTC()}, k, err
}

// publicKey writes a key's public half as a DNSKEY record does: both coordinates (RFC 6605
// section 4).
func publicKey(k *ecdsa.PrivateKey) (string, error) {
	point, err := k.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(point[1:]), nil
}

// EncodeSigningKeys writes private keys as they are sealed: a list of PKCS #8.
func EncodeSigningKeys(keys []*ecdsa.PrivateKey) ([]byte, error) {
	var list [][]byte
	for _, k := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, err
		}
		list = append(list, der)
	}
	return json.Marshal(list)
}

// ParseSigningKeys reads what EncodeSigningKeys wrote, and makes sure that they are the
// private halves of want. No error quotes a key.
func ParseSigningKeys(b []byte, want []SigningKey) ([]*ecdsa.PrivateKey, error) {
	var list [][]byte
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, errors.New("the zone's private keys do not parse")
	}
	if len(list) != len(want) {
		return nil, fmt.Errorf("%d private keys of the zone, expected %d", len(list), len(want))
	}
	var keys []*ecdsa.PrivateKey
	for i, der := range list {
		any, err := x509.ParsePKCS8PrivateKey(der)
		k, ok := any.(*ecdsa.PrivateKey)
		if err != nil || !ok || k.Curve != elliptic.P256() {
			return nil, errors.New("a private key of the zone does not parse as ECDSA on P-256")
		}
		if public, err := publicKey(k); err != nil || public != want[i].Public {
			return nil, errors.New("a private key of the zone is not that of its public half")
		}
		keys = append(keys, k)
	}
	return keys, nil
}
