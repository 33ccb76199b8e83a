//go:build peers

package peers

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/lab"
	"msgw/test/labtest"
)

// ResolverAddr is where the suite's resolver listens, and what every program's
// resolv.conf names.
const ResolverAddr = "127.0.0.53"

// RootAddrs are where the root servers of the served tree listen.
var RootAddrs = []string{"127.0.1.1", "127.0.1.2"}

// ServeTree serves the DNS above the lab's zone with NSD, each zone on two addresses
// of its own: the root, com, and example.com, which delegates the zone to the lab's
// sites as an operator would. r must hold the package nsd.
func ServeTree(t testing.TB, r *Root, f lab.File) {
	t.Helper()
	delegation := ""
	for _, n := range f.Nodes {
		if n.Role == "site" {
			delegation += fmt.Sprintf("%s. NS %s.\n%s. A %s\n", f.Zone, n.Host, n.Host, n.Addr)
		}
	}
	ServeDelegation(t, r, delegation)
}

// ServeDelegation serves the same with other lines to delegate the zone.
func ServeDelegation(t testing.TB, r *Root, lines string) {
	t.Helper()
	soa := func(zone string) string {
		return fmt.Sprintf("$ORIGIN %s\n$TTL 3600\n@ SOA ns1.%s hostmaster.%s 2026010101 14400 3600 1209600 3600\n", zone, suffix(zone), suffix(zone))
	}
	ns := func(child string, addrs []string) string {
		text := ""
		for i, a := range addrs {
			text += fmt.Sprintf("%s NS ns%d.%s\nns%d.%s A %s\n", child, i+1, suffix(child), i+1, suffix(child), a)
		}
		return text
	}
	com, example := []string{"127.0.1.3", "127.0.1.4"}, []string{"127.0.1.5", "127.0.1.6"}
	serve(t, r, "root", RootAddrs, ".", soa(".")+ns(".", RootAddrs)+ns("com.", com))
	serve(t, r, "com", com, "com.", soa("com.")+ns("com.", com)+ns("example.com.", example))
	serve(t, r, "example", example, "example.com.", soa("example.com.")+ns("example.com.", example)+lines)
}

// suffix is zone as the end of a name below it.
func suffix(zone string) string {
	if zone == "." {
		return "root-servers."
	}
	return zone
}

// serve runs an NSD with one zone.
func serve(t testing.TB, r *Root, name string, addrs []string, zone, text string) {
	t.Helper()
	dir := "/srv/nsd/" + name
	r.Write(t, dir+"/zone", text, 0o644)
	conf := "server:\n hide-version: yes\n username: \"\"\n chroot: \"\"\n zonesdir: " + dir + "\n database: \"\"\n pidfile: " + dir + "/pid\n xfrdfile: " + dir + "/xfrd\n zonelistfile: " + dir + "/list\n rrl-ratelimit: 0\n"
	for _, a := range addrs {
		conf += " ip-address: " + a + "\n"
	}
	conf += "remote-control:\n control-enable: no\nzone:\n name: \"" + zone + "\"\n zonefile: " + dir + "/zone\n"
	r.Write(t, dir+"/nsd.conf", conf, 0o644)
	r.Output(t, "/usr/sbin/nsd-checkzone", zone, dir+"/zone")
	Start(t, "nsd-"+name, r.Command(t.Context(), "/usr/sbin/nsd", "-d", "-c", dir+"/nsd.conf"))
	for _, a := range addrs {
		labtest.Within(t, 20*time.Second, "nsd for "+zone, func() error {
			_, err := Ask(a, zone, dns.TypeSOA)
			return err
		})
	}
}

// RootHints returns the served tree's root servers as a zone file.
func RootHints() string {
	hints := ""
	for i, a := range RootAddrs {
		hints += fmt.Sprintf(". 3600000 NS ns%d.root-servers.\nns%d.root-servers. 3600000 A %s\n", i+1, i+1, a)
	}
	return hints
}

// Unbound runs a resolver at ResolverAddr that knows the served tree's root, and
// returns it. Answers are kept for at most maxTTL. r must hold the package unbound.
func Unbound(t testing.TB, r *Root, maxTTL time.Duration) *Process {
	t.Helper()
	dir := "/srv/unbound"
	r.Write(t, dir+"/hints", RootHints(), 0o644)
	r.Write(t, dir+"/unbound.conf", fmt.Sprintf(`server:
 directory: %q
 chroot: ""
 username: ""
 pidfile: ""
 use-syslog: no
 verbosity: 1
 interface: %s
 access-control: 127.0.0.0/8 allow
 do-ip6: no
 do-not-query-localhost: no
 module-config: "iterator"
 root-hints: %q
 cache-max-ttl: %d
 cache-max-negative-ttl: %d
 qname-minimisation: yes
 num-threads: 1
remote-control:
 control-enable: no
`, dir, ResolverAddr, dir+"/hints", int(maxTTL.Seconds()), int(maxTTL.Seconds())), 0o644)
	p := Start(t, "unbound", r.Command(t.Context(), "/usr/sbin/unbound", "-d", "-p", "-c", dir+"/unbound.conf"))
	labtest.Within(t, 20*time.Second, "unbound resolves through the tree", func() error {
		if p.Ended() {
			t.Fatal("unbound has ended")
		}
		m, err := Ask(ResolverAddr, lab.Zone+".", dns.TypeMX)
		if err == nil && len(m.Answer) == 0 {
			err = fmt.Errorf("no answer: %s", dns.RcodeToString[m.Rcode])
		}
		return err
	})
	return p
}

// Ask sends one query by UDP, recursion desired, and returns the answer.
func Ask(server, name string, qtype uint16) (*dns.Msg, error) {
	c := &dns.Client{Timeout: 3 * time.Second}
	q := new(dns.Msg).SetQuestion(name, qtype)
	m, _, err := c.Exchange(q, net.JoinHostPort(server, "53"))
	return m, err
}

// Lab starts a lab on the standard ports. See labtest.Start.
func Lab(t testing.TB, args ...string) *labtest.Lab {
	t.Helper()
	return labtest.Start(t, Program("msgw"), filepath.Join(t.TempDir(), "lab"), append([]string{"--standard-ports"}, args...)...)
}

// Lines returns the lines of a program's output.
func Lines(out string) []string { return strings.Split(strings.TrimRight(out, "\n"), "\n") }
