package pop3d

import (
	"container/list"
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Throttle bounds failed logins: a key may have this many at once, and gets one
// back every Window divided by that number. Only wrong credentials count, so an
// archive may poll any number of mailboxes from one address. Zero fields mean the
// default.
type Throttle struct {
	Window  time.Duration // 10 minutes
	Address int           // failures per IPv4 address or IPv6 /64: 300
	User    int           // failures per user, from all addresses together: 20
	Keys    int           // addresses, and users, remembered; the oldest are dropped: 65536
}

// throttle refuses logins before they cost anything. A user whose failures are
// used up still gets in from where that user last logged in, so that nobody can
// lock the archive out by guessing.
type throttle struct {
	limits Throttle
	seed   maphash.Seed

	mu        sync.Mutex
	addresses recent[netip.Prefix, failures]
	users     recent[uint64, failures]
	known     recent[uint64, netip.Prefix]
}

func newThrottle(limits Throttle) *throttle {
	return &throttle{
		limits:    limits,
		seed:      maphash.MakeSeed(),
		addresses: newRecent[netip.Prefix, failures](limits.Keys),
		users:     newRecent[uint64, failures](limits.Keys),
		known:     newRecent[uint64, netip.Prefix](limits.Keys),
	}
}

// keys gives what a login is counted under. The ways to write one mailbox count as one.
func (t *throttle) keys(peer netip.Addr, user string) (netip.Prefix, uint64) {
	bits := 64
	if peer.Is4() {
		bits = 32
	}
	address, _ := peer.Prefix(bits) // fails for no number of bits used here
	mailbox, _, _ := strings.Cut(strings.ToLower(user), "@")
	return address, maphash.String(t.seed, mailbox)
}

// allow says whether a login may be tried.
func (t *throttle) allow(peer netip.Addr, user string) bool {
	address, mailbox := t.keys(peer, user)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.addresses.get(address); ok && f.level(now, t.limits.Address, t.limits.Window) > float64(t.limits.Address-1) {
		return false
	}
	if from, ok := t.known.get(mailbox); ok && from == address {
		return true
	}
	f, ok := t.users.get(mailbox)
	return !ok || f.level(now, t.limits.User, t.limits.Window) <= float64(t.limits.User-1)
}

// failed counts wrong credentials.
func (t *throttle) failed(peer netip.Addr, user string) {
	address, mailbox := t.keys(peer, user)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	a, _ := t.addresses.get(address)
	t.addresses.put(address, failures{a.level(now, t.limits.Address, t.limits.Window) + 1, now})
	u, _ := t.users.get(mailbox)
	t.users.put(mailbox, failures{u.level(now, t.limits.User, t.limits.Window) + 1, now})
}

// succeeded remembers from where a user logged in.
func (t *throttle) succeeded(peer netip.Addr, user string) {
	address, mailbox := t.keys(peer, user)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known.put(mailbox, address)
}

// failures is how many failures stood against a key at a time.
type failures struct {
	count float64
	at    time.Time
}

// level is what is left of them: limit of them are forgiven per window.
func (f failures) level(now time.Time, limit int, window time.Duration) float64 {
	return max(0, f.count-float64(limit)*float64(now.Sub(f.at))/float64(window))
}

// recent is a map of at most max keys that drops the one put longest ago.
type recent[K comparable, V any] struct {
	max   int
	order *list.List // of pairs, the oldest first
	at    map[K]*list.Element
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

func newRecent[K comparable, V any](max int) recent[K, V] {
	return recent[K, V]{max: max, order: list.New(), at: make(map[K]*list.Element)}
}

func (r *recent[K, V]) get(k K) (v V, ok bool) {
	e, ok := r.at[k]
	if !ok {
		return v, false
	}
	return e.Value.(pair[K, V]).value, true
}

func (r *recent[K, V]) put(k K, v V) {
	if e, ok := r.at[k]; ok {
		e.Value = pair[K, V]{k, v}
		r.order.MoveToBack(e)
		return
	}
	if len(r.at) >= r.max {
		oldest := r.order.Front()
		delete(r.at, oldest.Value.(pair[K, V]).key)
		r.order.Remove(oldest)
	}
	r.at[k] = r.order.PushBack(pair[K, V]{k, v})
}
