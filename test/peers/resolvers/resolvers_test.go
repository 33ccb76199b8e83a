//go:build peers

// Package resolvers lets resolvers and judges of DNS look at a lab's zone.
package resolvers

import (
	"testing"
	"time"

	"msgw/test/peers"
)

var base = &peers.Root{Name: "resolvers", Packages: []string{"nsd", "unbound", "bind9-dnsutils"}}

func TestMain(m *testing.M) {
	(&peers.Suite{Roots: []*peers.Root{base}}).Main(m)
}

func TestUnbound(t *testing.T) {
	base.Versions(t)
	l := peers.Lab(t)
	peers.ServeTree(t, base, l.File())
	peers.Unbound(t, base, 0*time.Second)
	t.Log(base.Output(t, "/usr/bin/dig", "msgw.example.com", "MX"))
}
