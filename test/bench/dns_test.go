//go:build bench && peers

package bench

import (
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/test/labtest"
	"msgw/test/peers"
)

var dnsRates = flag.Bool("dns", false, "measure DNS beside other name servers, and how soon a dead site is answered last, and nothing else")

// nameservers holds what msgw's DNS is measured beside, and what asks.
var nameservers = &peers.Root{Name: "bench-dns", Packages: []string{"nsd", "knot", "pdns-server", "pdns-backend-bind", "gdnsd", "dnsperf", "bind9-utils"}}

// corednsModule is the release that msgw embeds, with its own plugins.
const corednsModule = "github.com/coredns/coredns@v1.15.0"

// The zone that every server answers, and what is asked: two mail hosts.
const (
	benchZone  = "msgw.example.com"
	benchHosts = `msgw1.msgw.example.com. 300 IN A 192.0.2.1
msgw2.msgw.example.com. 300 IN A 192.0.2.2
`
	benchApex = `msgw.example.com. 3600 IN SOA msgw1.msgw.example.com. hostmaster.example.com. 1 14400 3600 604800 60
msgw.example.com. 3600 IN NS msgw1.msgw.example.com.
msgw.example.com. 3600 IN NS msgw2.msgw.example.com.
`
	benchMX = `msgw.example.com. 60 IN MX 10 msgw1.msgw.example.com.
msgw.example.com. 60 IN MX 20 msgw2.msgw.example.com.
`
)

// nameserver is one that is measured.
type nameserver struct {
	name, ip string
	signed   bool // dnsperf asks with DO
	start    func(t *testing.T, s *nameserver)
	cpu      func(t *testing.T) time.Duration // spent so far
	// asked is the name and type, where it cannot answer MX.
	asked string
}

// asks is how fast a server answered.
type asks struct{ qps, cpu, lost float64 } // a second; microseconds for each; share

const (
	oursName, oursSignedName              = "msgw, drawn MX", "msgw, drawn MX, signed"
	corednsName, corednsSignedName        = "CoreDNS file", "CoreDNS file and dnssec"
	pdnsLuaName, knotName, knotOnlineName = "PowerDNS Lua", "Knot", "Knot signing online"
	pdnsSharedName                        = "PowerDNS Lua, shared state"
	nsdName, gdnsdName                    = "NSD", "gdnsd, drawn A"
)

// TestDNS asks all servers the same question with dnsperf, one after the other.
func TestDNS(t *testing.T) {
	if !*dnsRates {
		t.Skip("asked for with -dns")
	}
	nameservers.Versions(t)
	span, repetitions := 4*time.Second, 1
	if *full {
		span, repetitions = 10*time.Second, 3
	}
	if *window > 0 {
		span = *window
	}
	lab := peers.Lab(t)
	ours := func(t *testing.T, s *nameserver) {
		n := lab.File().Nodes[0]
		s.ip, s.cpu = n.Addr, func(t *testing.T) time.Duration { return spent(t, n.PID) }
		if s.signed {
			if out, err := lab.Msgw("dns", "sign", "on", "--dir", n.Dir); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	}
	if out, err := lab.Msgw("node", "weight", "msgw1", "3", "--dir", lab.File().Nodes[0].Dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	servers := []*nameserver{
		{name: oursName, start: ours},
		{name: corednsName, ip: "127.0.30.5", start: startCoreDNS},
		{name: nsdName, ip: "127.0.30.1", start: startNSD},
		{name: gdnsdName, ip: "127.0.30.4", start: startGdnsd, asked: "mx." + benchZone + " A"},
		{name: knotName, ip: "127.0.30.2", start: startKnot},
		{name: pdnsLuaName, ip: "127.0.30.3", start: startPowerDNS},
		{name: pdnsSharedName, ip: "127.0.30.3", start: startPowerDNS},
		{name: knotOnlineName, ip: "127.0.30.6", signed: true, start: startKnot},
		{name: corednsSignedName, ip: "127.0.30.7", signed: true, start: startCoreDNS},
		{name: oursSignedName, signed: true, start: ours},
	}
	only := regexp.MustCompile(*systems)
	servers = slices.DeleteFunc(servers, func(s *nameserver) bool { return !only.MatchString(s.name) })
	got := map[string][]asks{}
	for range repetitions {
		for _, s := range servers {
			t.Run(s.name, func(t *testing.T) {
				s.start(t, s)
				got[s.name] = append(got[s.name], s.measure(t, span))
			})
		}
	}
	t.Log("\n" + dnsTable(servers, got))
}

func dnsTable(servers []*nameserver, got map[string][]asks) string {
	median := func(name string, of func(asks) float64) float64 {
		var all []float64
		for _, a := range got[name] {
			all = append(all, of(a))
		}
		if len(all) == 0 {
			return math.NaN()
		}
		slices.Sort(all)
		return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
	}
	cpu := func(name string) float64 { return median(name, func(a asks) float64 { return a.cpu }) }
	qps := func(name string) float64 { return median(name, func(a asks) float64 { return a.qps }) }
	var b strings.Builder
	fmt.Fprintf(&b, "%d cores, which dnsperf shares. Answers are not bounded by rate: loopback is exempt.\n\n", runtime.NumCPU())
	fmt.Fprintln(&b, "| server | queries/s | CPU µs/query | lost | msgw ÷ it | msgw signed ÷ it |\n|---|---:|---:|---:|---:|---:|")
	for _, s := range servers {
		fmt.Fprintf(&b, "| %s | %.0f | %s | %.4f | %s | %s |\n", s.name, qps(s.name), digits(cpu(s.name)),
			median(s.name, func(a asks) float64 { return a.lost }), digits(qps(oursName)/qps(s.name)), digits(qps(oursSignedName)/qps(s.name)))
	}
	fmt.Fprintln(&b, "\n| aim | wanted | reached | |\n|---|---:|---:|---|")
	for _, aim := range []struct {
		what   string
		wanted float64
		a, b   string
	}{
		{"drawn MX ÷ CoreDNS file", 1.2, oursName, corednsName},
		{"signed ÷ unsigned", 0.8, oursSignedName, oursName},
		{"signed ÷ Knot signing online", 3, oursSignedName, knotOnlineName},
		{"drawn MX ÷ PowerDNS Lua", 5, oursName, pdnsLuaName},
	} {
		reached, verdict := qps(aim.a)/qps(aim.b), "met"
		if math.IsNaN(reached) {
			verdict = "not measured"
		} else if reached < aim.wanted {
			verdict = "short"
		}
		// dnsperf takes a core of its own: where there are two, the rates come closer than the work.
		fmt.Fprintf(&b, "| %s | ≥ %s | %s | %s; by processor time %s |\n", aim.what, digits(aim.wanted), digits(reached), verdict, digits(cpu(aim.b)/cpu(aim.a)))
	}
	return b.String()
}

// measure asks a server for a time.
func (s *nameserver) measure(t *testing.T, span time.Duration) asks {
	t.Helper()
	if s.asked == "" {
		s.asked = benchZone + " MX"
	}
	nameservers.Write(t, "/srv/queries", s.asked+"\n", 0o644)
	ask := func(d time.Duration) string {
		args := []string{"-s", s.ip, "-d", "/srv/queries", "-l", fmt.Sprint(d.Seconds()), "-c", "20", "-q", "200"}
		if s.signed {
			args = append(args, "-e", "-D")
		}
		return nameservers.Output(t, "/usr/bin/dnsperf", args...)
	}
	ask(time.Second)
	before := s.cpu(t)
	out := ask(span)
	figure := func(pattern string) float64 {
		m := regexp.MustCompile(pattern).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("dnsperf said no %s:\n%s", pattern, out)
		}
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if !regexp.MustCompile(`Response codes:\s+NOERROR \d+ \(100\.00%\)`).MatchString(out) {
		t.Fatalf("%s:\n%s", s.name, out)
	}
	a := asks{qps: figure(`Queries per second:\s+([\d.]+)`), cpu: float64((s.cpu(t) - before).Microseconds()) / figure(`Queries completed:\s+(\d+)`), lost: figure(`Queries lost:\s+\d+ \(([\d.]+)%\)`) / 100}
	return a
}

// spent returns the processor time that a process has spent (proc(5), utime and stime of
// /proc/pid/stat, in ticks of which Linux has 100 a second).
func spent(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), ") ") // past the name
	f := strings.Fields(after)
	user, err := strconv.Atoi(f[11])
	if err != nil {
		t.Fatal(err)
	}
	system, err := strconv.Atoi(f[12])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// run starts a server in a group of its own and waits until it answers.
func (s *nameserver) run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	g := newGroup(t, "dns")
	s.cpu = g.cpu
	started := g.adopt(t, cmd)
	p := peers.Start(t, strings.Fields(s.name)[0], cmd)
	started()
	labtest.Within(t, 20*time.Second, s.name+" answers", func() error {
		if p.Ended() {
			return fmt.Errorf("it has ended")
		}
		_, err := peers.Ask(s.ip, benchZone+".", dns.TypeSOA)
		return err
	})
	t.Cleanup(func() { p.Stop(9) })
}

func startNSD(t *testing.T, s *nameserver) {
	nameservers.Write(t, "/srv/nsd/zone", benchApex+benchHosts+benchMX, 0o644)
	nameservers.Write(t, "/srv/nsd/nsd.conf", `server:
 ip-address: `+s.ip+`
 username: ""
 chroot: ""
 zonesdir: /srv/nsd
 database: ""
 pidfile: /srv/nsd/pid
 xfrdfile: /srv/nsd/xfrd
 zonelistfile: /srv/nsd/list
 server-count: 2
 rrl-ratelimit: 0
remote-control:
 control-enable: no
zone:
 name: `+benchZone+`
 zonefile: zone
`, 0o644)
	s.run(t, nameservers.Command(t.Context(), "/usr/sbin/nsd", "-d", "-c", "/srv/nsd/nsd.conf"))
}

func startKnot(t *testing.T, s *nameserver) {
	dir, module, policy := "/srv/knot-"+s.ip, "", ""
	if s.signed {
		policy = "policy:\n - id: one\n   algorithm: ecdsap256sha256\n   single-type-signing: on\nmod-onlinesign:\n - id: here\n   policy: one\n"
		module = "   module: mod-onlinesign/here\n"
	}
	nameservers.Write(t, dir+"/zone", benchApex+benchHosts+benchMX, 0o644)
	nameservers.Write(t, dir+"/knot.conf", `server:
    listen: `+s.ip+`@53
    rundir: `+dir+`
database:
    storage: `+dir+`
`+policy+`zone:
 - domain: `+benchZone+`
   storage: `+dir+`
   file: zone
`+module, 0o644)
	s.run(t, nameservers.Command(t.Context(), "/usr/sbin/knotd", "-c", dir+"/knot.conf"))
}

// startPowerDNS has each query run in a state of Lua's own, as it is delivered, or in one that
// all share, which is faster.
func startPowerDNS(t *testing.T, s *nameserver) {
	luaState := "yes"
	if s.name == pdnsSharedName {
		luaState = "shared"
	}
	lua := benchZone + `. 60 IN LUA MX "pickwrandom({{3,'10 msgw1.` + benchZone + `.'},{1,'10 msgw2.` + benchZone + `.'}})"` + "\n"
	nameservers.Write(t, "/srv/pdns/zone", benchApex+benchHosts+lua, 0o644)
	nameservers.Write(t, "/srv/pdns/named.conf", `zone "`+benchZone+`" { type master; file "/srv/pdns/zone"; };`+"\n", 0o644)
	nameservers.Write(t, "/srv/pdns/pdns.conf", `launch=bind
security-poll-suffix=
bind-config=/srv/pdns/named.conf
local-address=`+s.ip+`
socket-dir=/srv/pdns
enable-lua-records=`+luaState+`
cache-ttl=0
query-cache-ttl=0
negquery-cache-ttl=0
receiver-threads=2
daemon=no
guardian=no
`, 0o644)
	s.run(t, nameservers.Command(t.Context(), "/usr/sbin/pdns_server", "--config-dir=/srv/pdns"))
}

func startGdnsd(t *testing.T, s *nameserver) {
	dir := "/srv/gdnsd"
	nameservers.Write(t, dir+"/config", `options => {
  listen => "`+s.ip+`"
  run_dir => "`+dir+`/run"
  state_dir => "`+dir+`/state"
}
plugins => {
  weighted => {
    mx => { multi => false, one => [ 192.0.2.1, 3 ], two => [ 192.0.2.2, 1 ], service_types => up }
  }
}
`, 0o644)
	nameservers.Write(t, dir+"/zones/"+benchZone, "@ 3600 SOA msgw1 hostmaster.example.com. ( 1 14400 3600 604800 60 )\n@ 3600 NS msgw1\n@ 3600 NS msgw2\nmsgw1 300 A 192.0.2.1\nmsgw2 300 A 192.0.2.2\nmx 60 DYNA weighted!mx\n", 0o644)
	for _, d := range []string{"run", "state"} {
		if err := os.MkdirAll(nameservers.Path(dir+"/"+d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.run(t, nameservers.Command(t.Context(), "/usr/sbin/gdnsd", "-c", dir, "start"))
}

func startCoreDNS(t *testing.T, s *nameserver) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	signing := ""
	if s.signed {
		key := strings.TrimSpace(nameservers.Output(t, "/usr/bin/dnssec-keygen", "-q", "-K", dir, "-a", "ECDSAP256SHA256", "-f", "KSK", benchZone))
		signing = " dnssec {\n  key file " + filepath.Join(dir, key) + "\n }\n"
	}
	write("zone", "$ORIGIN "+benchZone+".\n"+benchApex+benchHosts+benchMX)
	write("Corefile", benchZone+" {\n bind "+s.ip+"\n"+signing+" file "+filepath.Join(dir, "zone")+"\n}\n")
	s.run(t, exec.CommandContext(t.Context(), peers.Program("coredns"), "-conf", filepath.Join(dir, "Corefile"), "-quiet"))
}
