package smtpnode

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// PresetsAsOf is when the presets were last compared with their sources.
const PresetsAsOf = "2026-11"

// presets are the networks that large senders send from, as they publish them. They are
// wider than what is in use at a time, since a network that is missing delays mail.
var presets = map[string]string{
	// The ranges of mail.protection.outlook.com, port 25, id 10 of the Microsoft 365
	// endpoints service, worldwide instance. https://aka.ms/o365endpoints
	"microsoft365": "40.92.0.0/15 40.107.0.0/16 52.100.0.0/14 52.238.78.88/32 104.47.0.0/17 " +
		"2a01:111:f400::/48 2a01:111:f403::/48",
	// The SPF record of _spf.google.com with what it included until 2025, and the ranges
	// of unverified forwarding, which routing rules may use.
	// https://support.google.com/a/answer/60764
	"google": "35.190.247.0/24 35.191.0.0/16 64.233.160.0/19 66.102.0.0/20 66.249.80.0/20 72.14.192.0/18 " +
		"74.125.0.0/16 108.177.8.0/21 108.177.16.0/23 108.177.96.0/19 130.211.0.0/22 142.250.220.0/23 " +
		"172.217.0.0/19 172.217.32.0/20 172.217.128.0/19 172.217.160.0/20 172.217.192.0/19 " +
		"172.253.56.0/21 172.253.112.0/20 173.194.0.0/16 209.85.128.0/17 216.58.192.0/19 216.239.32.0/19 " +
		"2001:4860:4000::/36 2404:6800:4000::/36 2600:1901:101::/48 2607:f8b0:4000::/36 2800:3f0:4000::/36 " +
		"2a00:1450:4000::/36 2c0f:fb50:4000::/36",
}

var presetNetworks = sync.OnceValue(func() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for name, list := range presets {
		for _, s := range strings.Fields(list) {
			out[name] = append(out[name], netip.MustParsePrefix(s))
		}
	}
	return out
})

// Presets returns the names of the presets, sorted.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// Preset returns the networks of a preset.
func Preset(name string) ([]netip.Prefix, bool) {
	p, ok := presetNetworks()[name]
	return slices.Clone(p), ok
}

// ParseAllow reads an entry of an allow list: an address, a network as in 192.0.2.0/24,
// or the name of a preset.
func ParseAllow(s string) ([]netip.Prefix, error) {
	if p, ok := Preset(s); ok {
		return p, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return nil, fmt.Errorf("allow %q: expected an address, a network as in 192.0.2.0/24, or one of %s", s, strings.Join(Presets(), ", "))
	case p != p.Masked():
		return nil, fmt.Errorf("allow %q: the network is %s", s, p.Masked())
	}
	return []netip.Prefix{p}, nil
}

// FromPreset returns whether an address belongs to a sender that is known to be large.
func FromPreset(a netip.Addr) bool {
	a = a.Unmap()
	for _, list := range presetNetworks() {
		if slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}
