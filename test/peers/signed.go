//go:build peers

package peers

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/test/labtest"
)

// SignedTree is the served tree with every zone above the lab's signed.
type SignedTree struct {
	Anchor string // DNSKEY record of the root

	root    *Root
	example *Process
	lines   string // that delegate the lab's zone
	serial  int
}

// ServeSignedTree serves the same zones as ServeDelegation, signed by LDNS. ds are the
// lab's zone's DS records, whose TTL is 2 s. r must hold the packages nsd and ldnsutils.
func ServeSignedTree(t testing.TB, r *Root, lines string, ds ...string) *SignedTree {
	t.Helper()
	s := &SignedTree{root: r, lines: lines, serial: 2026010101}
	for _, z := range []struct{ name, zone string }{{"root", "."}, {"com", "com."}, {"example", "example.com."}} {
		dir := zoneDir(z.name)
		r.Write(t, dir+"/empty", "", 0o644)
		s.shell(t, dir, "rm -f K*; ldns-keygen -a ECDSAP256SHA256 -k -r /dev/urandom "+z.zone+" >key-name")
	}
	s.Anchor = strings.Join(strings.Fields(s.shell(t, zoneDir("root"), "cut -d';' -f1 K*.key")), " ")
	s.example = serve(t, r, "example", exampleAddrs, "example.com.", s.sign(t, "example", "example.com.", s.exampleZone(ds)))
	serve(t, r, "com", comAddrs, "com.", s.sign(t, "com", "com.", soaLine("com.")+nsLines("com.", comAddrs)+nsLines("example.com.", exampleAddrs)+
		s.shell(t, zoneDir("example"), "cat K*.ds")))
	serve(t, r, "root", RootAddrs, ".", s.sign(t, "root", ".", soaLine(".")+nsLines(".", RootAddrs)+nsLines("com.", comAddrs)+
		s.shell(t, zoneDir("com"), "cat K*.ds")))
	return s
}

func zoneDir(name string) string { return "/srv/nsd/" + name }

func (s *SignedTree) exampleZone(ds []string) string {
	text := strings.Replace(soaLine("example.com."), "2026010101", fmt.Sprint(s.serial), 1) + nsLines("example.com.", exampleAddrs) + s.lines
	for _, d := range ds {
		text += "msgw.example.com. 2 DS " + d + "\n"
	}
	return text
}

// sign returns a zone signed with its one key.
func (s *SignedTree) sign(t testing.TB, name, zone, text string) string {
	t.Helper()
	dir := zoneDir(name)
	s.root.Write(t, dir+"/unsigned", text, 0o644)
	return s.shell(t, dir, "ldns-signzone -i $(date -d yesterday +%Y%m%d) -o "+zone+" -f signed unsigned $(cat key-name) && cat signed")
}

// SetLines delegates the lab's zone with other lines, without DS records.
func (s *SignedTree) SetLines(t testing.TB, lines string) {
	t.Helper()
	s.lines = lines
	s.SetDS(t)
}

// SetDS gives the lab's zone other DS records.
func (s *SignedTree) SetDS(t testing.TB, ds ...string) {
	t.Helper()
	s.serial++
	s.root.Write(t, zoneDir("example")+"/zone", s.sign(t, "example", "example.com.", s.exampleZone(ds)), 0o644)
	if err := s.example.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for _, a := range exampleAddrs {
		labtest.Within(t, 20*time.Second, "the parent has the DS", func() error {
			m, err := Ask(a, "example.com.", dns.TypeSOA)
			if err == nil && (len(m.Answer) == 0 || int(m.Answer[0].(*dns.SOA).Serial) != s.serial) {
				err = fmt.Errorf("%v, expected serial %d", m.Answer, s.serial)
			}
			return err
		})
	}
}

func (s *SignedTree) shell(t testing.TB, dir, command string) string {
	t.Helper()
	return s.root.Output(t, "/bin/sh", "-euc", "cd "+filepath.Clean(dir)+"; "+command)
}
