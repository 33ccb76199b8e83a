package dnsplugin

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/miekg/dns"
)

// Key is a key of a signed zone: ECDSA on the curve P-256 (RFC 6605, algorithm 13), with
// the flags of a key that the parent's DS names (RFC 4034 section 2.1.1). Each key is in
// the zone's DNSKEY set and signs that set.
type Key struct {
	// Signer holds the private key. It is called by many goroutines at once.
	Signer crypto.Signer
	// Signs says that the key signs all other sets as well. Without a key that does, the
	// zone is answered unsigned.
	Signs bool
	// Parent says that CDS and CDNSKEY ask the parent for a DS of this key (RFC 7344).
	Parent bool
}

// keyFlags are ZONE and SEP: one key signs everything and is what the parent's DS names.
const keyFlags = dns.ZONE | dns.SEP

// DNSKEY returns the record of the key in a zone. The error is that of a key of another
// kind.
func (k Key) DNSKEY(zone string) (*dns.DNSKEY, error) {
	if k.Signer == nil {
		return nil, errors.New("a key of the zone has no private half")
	}
	pub, ok := k.Signer.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("a key of the zone is a %T, expected ECDSA on P-256", k.Signer.Public())
	}
	point, err := pub.Bytes() // 4, X, Y
	if err != nil {
		return nil, fmt.Errorf("a key of the zone: %w", err)
	}
	return DNSKEY(zone, base64.StdEncoding.EncodeToString(point[1:])), nil // RFC 6605 section 4
}

// DNSKEY returns the record of a key whose public half is known in the form of such a
// record.
func DNSKEY(zone, public string) *dns.DNSKEY {
	return &dns.DNSKEY{Hdr: header(dns.CanonicalName(zone), dns.TypeDNSKEY, ttlKey), Flags: keyFlags, Protocol: 3,
		Algorithm: dns.ECDSAP256SHA256, PublicKey: public}
}

// zoneKey is a Key that can be used.
type zoneKey struct {
	Key
	dnskey *dns.DNSKEY
	tag    uint16
}

// signing is how a zone is signed.
type signing struct {
	keys   []zoneKey
	signs  []zoneKey // those that sign all sets
	byAll  string    // tells apart what keys made a signature: of the sets that all sign
	byMost string    // and of the other sets
}

// placeKeys makes the zone a signed one if it has keys: DNSKEY, CDS and CDNSKEY at the
// apex. Without a usable key that signs it is left unsigned.
func (ix *index) placeKeys() {
	if len(ix.zone.Keys) == 0 {
		return
	}
	s := &signing{}
	for _, k := range ix.zone.Keys {
		record, err := k.DNSKEY(ix.name)
		if err != nil {
			ix.fault("%w", err)
			continue
		}
		z := zoneKey{k, record, record.KeyTag()}
		s.keys = append(s.keys, z)
		if k.Signs {
			s.signs = append(s.signs, z)
		}
	}
	if len(s.signs) == 0 {
		ix.fault("no key signs the zone: it is answered unsigned")
		return
	}
	s.byAll, s.byMost = fingerprint(s.keys), fingerprint(s.signs)
	ix.signing = s
	apex := ix.names[ix.name]
	for _, k := range s.keys {
		apex[dns.TypeDNSKEY] = ix.add(apex[dns.TypeDNSKEY], k.dnskey)
		if k.Parent && !ix.zone.Unsigning {
			apex[dns.TypeCDNSKEY] = ix.add(apex[dns.TypeCDNSKEY], k.dnskey.ToCDNSKEY())
			apex[dns.TypeCDS] = ix.add(apex[dns.TypeCDS], k.dnskey.ToDS(dns.SHA256).ToCDS())
		}
	}
	if ix.zone.Unsigning { // RFC 8078 section 4
		apex[dns.TypeCDNSKEY] = []dns.RR{&dns.CDNSKEY{DNSKEY: dns.DNSKEY{Hdr: header(ix.name, dns.TypeCDNSKEY, ttlKey), Protocol: 3, PublicKey: "AA=="}}}
		apex[dns.TypeCDS] = []dns.RR{&dns.CDS{DS: dns.DS{Hdr: header(ix.name, dns.TypeCDS, ttlKey), Digest: "00"}}}
	}
}

func fingerprint(keys []zoneKey) string {
	h := sha256.New()
	for _, k := range keys {
		h.Write([]byte(k.dnskey.PublicKey))
	}
	return string(h.Sum(nil)[:16])
}

// signers returns the keys that sign sets of a type. The parent takes CDS and CDNSKEY only
// from a key that its own DS names (RFC 7344 section 4.1), so they are signed by all, as
// the keys themselves are.
func (s *signing) signers(rrtype uint16) (keys []zoneKey, by string) {
	switch rrtype {
	case dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY:
		return s.keys, s.byAll
	}
	return s.signs, s.byMost
}
