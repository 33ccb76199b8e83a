package pop3d

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

var (
	home     = netip.MustParseAddr("192.0.2.1")
	stranger = netip.MustParseAddr("198.51.100.1")
)

func TestThrottleAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(Throttle{Window: 10 * time.Minute, Address: 10, User: 1000, Keys: 100})
		for i := range 10 {
			if !th.allow(home, "a") {
				t.Fatalf("refused after %d failures", i)
			}
			th.failed(home, fmt.Sprint(i))
		}
		if th.allow(home, "a") || !th.allow(stranger, "a") {
			t.Error("not that address, or not only that")
		}
		time.Sleep(time.Minute)
		if !th.allow(home, "a") {
			t.Error("none forgiven after a minute")
		}
		th.failed(home, "a")
		if th.allow(home, "a") {
			t.Error("more than one forgiven after a minute")
		}
		time.Sleep(10 * time.Minute)
		for range 10 {
			if !th.allow(home, "a") {
				t.Error("not all forgiven after the window")
			}
			th.failed(home, "a")
		}
	})
}

// One archive polls any number of mailboxes from one address.
func TestThrottleCountsFailuresOnly(t *testing.T) {
	t.Parallel()
	th := newThrottle(Throttle{Window: time.Hour, Address: 2, User: 2, Keys: 100})
	for i := range 10_000 {
		user := fmt.Sprint(i % 300)
		if !th.allow(home, user) {
			t.Fatalf("refused after %d successes", i)
		}
		th.succeeded(home, user)
	}
}

// Guessing at a mailbox from everywhere stops everybody but the archive that has it.
func TestThrottleUser(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle(Throttle{Window: 10 * time.Minute, Address: 1000, User: 3, Keys: 100})
		th.succeeded(home, "mbx-1@zone")
		for i, user := range []string{"mbx-1", "MBX-1", "mbx-1@elsewhere"} { // all the same
			if !th.allow(stranger, user) {
				t.Fatalf("refused after %d failures", i)
			}
			th.failed(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), user)
		}
		if th.allow(stranger, "mbx-1") {
			t.Error("a stranger may go on")
		}
		if !th.allow(home, "mbx-1") || !th.allow(stranger, "mbx-2") {
			t.Error("the archive is locked out")
		}
	})
}

func TestThrottleIPv6(t *testing.T) {
	t.Parallel()
	th := newThrottle(Throttle{Window: time.Hour, Address: 1, User: 100, Keys: 100})
	th.failed(netip.MustParseAddr("2001:db8::1"), "a")
	if th.allow(netip.MustParseAddr("2001:db8::ffff"), "b") || !th.allow(netip.MustParseAddr("2001:db8:0:1::1"), "b") {
		t.Error("counted by something else than the /64")
	}
	th.failed(netip.Addr{}, "a") // of no address
	if th.allow(netip.Addr{}, "b") {
		t.Error("a connection of no address is not counted")
	}
}

func TestThrottleIsBounded(t *testing.T) {
	t.Parallel()
	th := newThrottle(Throttle{Window: time.Hour, Address: 100, User: 100, Keys: 50})
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		th.failed(a, fmt.Sprint(i))
		th.succeeded(a, fmt.Sprint(i))
		th.failed(home, "again") // stays, being recent
	}
	for name, n := range map[string][2]int{
		"addresses": {len(th.addresses.at), th.addresses.order.Len()},
		"users":     {len(th.users.at), th.users.order.Len()},
		"known":     {len(th.known.at), th.known.order.Len()},
	} {
		if n != [2]int{50, 50} {
			t.Errorf("%s: %v kept, want 50", name, n)
		}
	}
	if th.allow(home, "x") {
		t.Error("the one that failed last, and most, was dropped")
	}
}
