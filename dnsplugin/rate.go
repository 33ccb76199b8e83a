package dnsplugin

import (
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/aead/siphash"
	"github.com/miekg/dns"
)

// Rate bounds the answers that go by UDP to one network, so that the server is of no use
// to who forges the addresses of others. The zero value bounds nothing.
type Rate struct {
	// PerSecond is how many answers of one kind (with data, without, of a name that does
	// not exist, or an error) a network gets, an IPv4 /24 or an IPv6 /56. What was not used
	// in a second can be used in the next.
	PerSecond int
	// Slip: one of so many answers beyond that is sent truncated, so that a client behind
	// the network can come by TCP; the others are dropped. 1: all are truncated. 0: none.
	Slip int
	// Exempt networks are not bounded, nor is this machine itself, nor a client that shows
	// a cookie of this zone, or comes by TCP.
	Exempt []netip.Prefix
}

// rateVerdict is what becomes of an answer.
type rateVerdict int

const (
	rateSend rateVerdict = iota
	rateTruncate
	rateDrop
)

// The buckets are a table of fixed size: two networks that fall into one bucket share it,
// which takes an attacker who knows the key.
const (
	rateShards  = 64
	rateBuckets = 1024 // of a shard
)

// limiter counts answers.
type limiter struct {
	rate   Rate
	key    [siphash.KeySize]byte
	octets sync.Pool // of *[17]byte, to be hashed
	shards [rateShards]struct {
		sync.Mutex
		buckets [rateBuckets]bucket
	}
}

// bucket counts for the network with a tag.
type bucket struct {
	tag     uint32
	over    uint32 // answers beyond the rate, for Slip
	level   float32
	updated int64 // unix nanoseconds
}

func newLimiter(r Rate) *limiter {
	if r.PerSecond <= 0 {
		return nil
	}
	l := &limiter{rate: r, octets: sync.Pool{New: func() any { return new([17]byte) }}}
	rand.Read(l.key[:])
	return l
}

// Kinds of answers.
const (
	kindData = iota
	kindNoData
	kindNoName
	kindError
)

func kindOf(m *dns.Msg) byte {
	switch {
	case m.Rcode == dns.RcodeNameError:
		return kindNoName
	case m.Rcode != dns.RcodeSuccess:
		return kindError
	case len(m.Answer) == 0:
		return kindNoData
	}
	return kindData
}

// account counts an answer of a kind to a client and says what is to become of it.
func (l *limiter) account(client netip.Addr, kind byte, now time.Time) rateVerdict {
	if l == nil || client.IsLoopback() || slices.ContainsFunc(l.rate.Exempt, func(p netip.Prefix) bool { return p.Contains(client) }) {
		return rateSend
	}
	bits := 56
	if client.Is4() {
		bits = 24
	}
	network, err := client.Prefix(bits)
	if err != nil {
		return rateSend // no IP address: it did not come by the network
	}
	sum := l.hash(network.Addr().As16(), kind)
	tag := uint32(sum >> 32)
	s := &l.shards[sum%rateShards]
	s.Lock()
	defer s.Unlock()
	b := &s.buckets[sum/rateShards%rateBuckets]
	t, rate := now.UnixNano(), float32(l.rate.PerSecond)
	if b.tag != tag {
		*b = bucket{tag: tag}
	} else if elapsed := float32(t-b.updated) / float32(time.Second); elapsed > 0 {
		b.level = max(0, b.level-elapsed*rate)
	}
	b.updated = t
	// One second's worth may be had at once. A flood does not run up a debt beyond that.
	if b.level < rate {
		b.level++
		return rateSend
	}
	b.over++
	if l.rate.Slip > 0 && b.over%uint32(l.rate.Slip) == 0 {
		return rateTruncate
	}
	return rateDrop
}

// hash does not let its argument escape to the heap: siphash's own does.
func (l *limiter) hash(network [16]byte, kind byte) uint64 {
	b := l.octets.Get().(*[17]byte)
	defer l.octets.Put(b)
	copy(b[:], network[:])
	b[16] = kind
	return siphash.Sum64(b[:], &l.key)
}

// truncated is the reply that makes a client come by TCP: the question, and EDNS.
func truncated(m *dns.Msg) *dns.Msg {
	t := *m
	t.Answer, t.Ns, t.Extra = nil, nil, nil
	if o := m.IsEdns0(); o != nil {
		t.Extra = []dns.RR{o}
	}
	t.Truncated = true
	return &t
}

// addrOf returns the IP address of a client; the zero address if it has none.
func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
