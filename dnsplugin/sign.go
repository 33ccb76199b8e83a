package dnsplugin

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Times of signatures. Each server makes its own, whenever it is asked for one, so none
// depends on another server or on anything but the keys. A resolver whose clock is off by
// hours still takes them.
const (
	signatureSkew     = 3 * time.Hour      // valid from so long before it was made
	signatureValidity = 7 * 24 * time.Hour // and until so long after
	signatureRefresh  = 2 * 24 * time.Hour // made anew when it is older
)

// Most signatures that are kept, of sets of the zone and of names that do not exist. Those
// that were not asked for lately go first. One has about 400 octets.
const (
	maxKept   = 8192
	maxDenied = 8192
)

// signer makes signatures and keeps them, whatever the version of the zone: a new version
// mostly has the same sets as the one before.
type signer struct {
	now      func() time.Time
	failed   func(error)
	kept     signatures
	denied   signatures
	canonics sync.Pool // of *canonic
}

func newSigner(failed func(error)) *signer {
	return &signer{now: time.Now, failed: failed, kept: signatures{limit: maxKept}, denied: signatures{limit: maxDenied},
		canonics: sync.Pool{New: func() any { return &canonic{} }}}
}

// signature is what all keys that sign a set made of it. The clock that counts is that of
// the wall, which may be set.
type signature struct {
	rrsigs []dns.RR
	made   int64 // unix seconds
}

func (s *signature) fresh(now int64) bool {
	return now >= s.made && now-s.made < int64(signatureRefresh/time.Second)
}

func (s *signature) valid(now int64) bool {
	return now >= s.made-int64(signatureSkew/time.Second) && now < s.made+int64(signatureValidity/time.Second)
}

// sign returns the RRSIG records of a whole set of records of the zone of ix, with the
// set's owner as it is written there. If none can be made, the last ones are returned
// while they are valid, and then none: an answer without them is still of use to whoever
// does not validate.
func (s *signer) sign(ix *index, set []dns.RR) []dns.RR {
	h, now := set[0].Header(), s.now().Unix()
	// Sets of the index are known by their first record; others are drawn or copied.
	own := ix.names[h.Name][h.Rrtype]
	static := len(own) == len(set) && own[0] == set[0]
	if static {
		if known, ok := ix.signed.Load(set[0]); ok && known.(*signature).fresh(now) {
			return known.(*signature).rrsigs
		}
	}
	store := &s.kept
	if nsec, ok := set[0].(*dns.NSEC); ok && slices.Contains(nsec.TypeBitMap, dns.TypeNXNAME) {
		store = &s.denied
	}
	keys, by := ix.signing.signers(h.Rrtype)
	c := s.canonics.Get().(*canonic)
	defer s.canonics.Put(c)
	key, err := c.of(by, set)
	if err != nil {
		s.failed(err)
		return nil
	}
	sig := store.get(key)
	if sig == nil || !sig.fresh(now) {
		made, err := makeSignature(ix.name, keys, set, now)
		switch {
		case err == nil:
			sig = made
			store.put(string(key), sig)
		case sig != nil && sig.valid(now):
			s.failed(err)
		default:
			s.failed(err)
			return nil
		}
	}
	if static && sig.fresh(now) {
		ix.signed.Store(set[0], sig)
	}
	return owned(sig.rrsigs, h.Name)
}

func makeSignature(zone string, keys []zoneKey, set []dns.RR, now int64) (*signature, error) {
	sig := &signature{made: now}
	owner := dns.CanonicalName(set[0].Header().Name)
	if strings.HasPrefix(owner, "*") && !strings.HasPrefix(owner, "*.") {
		// The library takes every name that begins so for a wildcard, unless it is escaped.
		set = owned(set, `\042`+owner[1:])
	}
	for _, k := range keys {
		r := &dns.RRSIG{Hdr: header(owner, dns.TypeRRSIG, 0), Algorithm: k.dnskey.Algorithm, KeyTag: k.tag, SignerName: zone,
			Inception: uint32(now - int64(signatureSkew/time.Second)), Expiration: uint32(now + int64(signatureValidity/time.Second))}
		if err := r.Sign(k.Signer, set); err != nil {
			return nil, err
		}
		r.Hdr.Name, r.Hdr.Ttl = owner, r.OrigTtl // RFC 4034 section 3
		sig.rrsigs = append(sig.rrsigs, r)
	}
	return sig, nil
}

// canonic writes a set in the order that a signature knows it in (RFC 4034 section 6.3),
// whatever the order in the answer and the case of the owner's name.
type canonic struct {
	buf  []byte // the records, one behind the other
	key  []byte
	data [][]byte
}

func (c *canonic) of(by string, set []dns.RR) ([]byte, error) {
	if c.buf == nil {
		c.buf = make([]byte, dns.MaxMsgSize)
	}
	h := set[0].Header()
	c.data = c.data[:0]
	off := 0
	for _, rr := range set {
		if off > len(c.buf)/2 { // rarely, a set of many long records
			c.buf = append(make([]byte, 0, 2*len(c.buf)), c.buf...)
			c.buf = c.buf[:cap(c.buf)]
		}
		start := off
		end, err := dns.PackRR(rr, c.buf, off, nil, false)
		if err != nil {
			return nil, err
		}
		for off < end && c.buf[off] != 0 { // past the owner
			off += 1 + int(c.buf[off])
		}
		if start == 0 {
			c.key = append(append(c.key[:0], by...), bytes.ToLower(c.buf[:off+1])...)
		}
		// Type, class, TTL and length, then what is signed.
		c.data = append(c.data, c.buf[off+11:end])
		off = end
	}
	slices.SortFunc(c.data, bytes.Compare)
	c.key = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(c.key, h.Rrtype), h.Ttl)
	for _, d := range c.data {
		c.key = append(binary.BigEndian.AppendUint16(c.key, uint16(len(d))), d...)
	}
	return c.key, nil
}

// signatures keeps at least the last limit signatures asked for, and at most twice that.
type signatures struct {
	limit int

	mu         sync.RWMutex
	young, old map[string]*signature
}

func (s *signatures) get(key []byte) *signature {
	s.mu.RLock()
	sig, young := s.young[string(key)]
	if !young {
		sig = s.old[string(key)]
	}
	s.mu.RUnlock()
	if sig != nil && !young {
		s.put(string(key), sig)
	}
	return sig
}

func (s *signatures) put(key string, sig *signature) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, have := s.young[key]; !have && (s.young == nil || len(s.young) >= s.limit) {
		s.young, s.old = make(map[string]*signature), s.young
	}
	s.young[key] = sig
}

// unsigned notes that a set went out without a signature that it should have.
func (h *Handler) unsigned(err error) {
	h.metrics.unsigned.Inc()
	h.oncePerMinute(&h.lastUnsigned, func() {
		h.log.Error("a dns answer cannot be signed; validating resolvers will not take it", "err", err)
	})
}

func (h *Handler) oncePerMinute(last *atomic.Int64, say func()) {
	now := time.Now().Unix()
	if before := last.Load(); now-before >= 60 && last.CompareAndSwap(before, now) {
		say()
	}
}
