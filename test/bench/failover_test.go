//go:build bench && peers

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/test/labtest"
	"msgw/test/peers"
)

// The machines: the first answers, the second dies.
const (
	liveAddr = "10.78.0.1"
	deadAddr = "10.78.0.2"
)

// facility is two machines on a bridge, each a network namespace.
type facility struct{ t *testing.T }

func newFacility(t *testing.T) facility {
	f := facility{t}
	f.ip("link", "add", "br0", "type", "bridge")
	t.Cleanup(func() {
		f.ip("link", "delete", "br0")
		for _, n := range []string{"one", "two"} {
			f.ip("netns", "delete", n)
		}
	})
	f.ip("address", "add", "10.78.0.254/24", "dev", "br0")
	f.ip("link", "set", "br0", "up")
	for n, addr := range map[string]string{"one": liveAddr, "two": deadAddr} {
		f.ip("netns", "add", n)
		f.ip("link", "add", "v"+n, "type", "veth", "peer", "name", "eth0", "netns", n)
		f.ip("link", "set", "v"+n, "master", "br0", "up")
		f.ip("-n", n, "address", "add", addr+"/24", "dev", "eth0")
		f.ip("-n", n, "link", "set", "lo", "up")
		f.ip("-n", n, "link", "set", "eth0", "up")
	}
	return f
}

func (f facility) ip(args ...string) {
	f.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		f.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// command runs a program in a machine.
func (f facility) command(machine, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(f.t.Context(), "nsenter", append([]string{"--net=/run/netns/" + machine, program}, args...)...)
}

// must runs msgw in a machine.
func (f facility) must(machine string, args ...string) string {
	f.t.Helper()
	out, err := f.command(machine, peers.Program("msgw"), args...).Output()
	if err != nil {
		f.t.Fatalf("%s: msgw %s: %v\n%s", machine, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// subject is a name server on the live machine.
type subject struct {
	name, addr string
	question   string
	qtype      uint16
	// without reports whether an answer has the dead machine last, or not at all.
	without func(answer []dns.RR) bool
}

func (s subject) ask() (without bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	r, _, err := new(dns.Client).ExchangeContext(ctx, new(dns.Msg).SetQuestion(s.question, s.qtype), s.addr)
	if err != nil {
		return false, err
	}
	if len(r.Answer) == 0 {
		return false, fmt.Errorf("%s: %s", s.name, dns.RcodeToString[r.Rcode])
	}
	return s.without(r.Answer), nil
}

// until asks until the answer is so, and returns how long that took.
func (s subject) until(without bool, limit time.Duration) (time.Duration, error) {
	began := time.Now()
	for {
		got, err := s.ask()
		if err == nil && got == without {
			return time.Since(began), nil
		}
		if time.Since(began) > limit {
			return 0, fmt.Errorf("%s: still without it: %v, %w, after %v", s.name, got, err, limit)
		}
		time.Sleep(3 * time.Millisecond)
	}
}

// TestFailover kills a site, and lets it fall silent, and takes the time until msgw, gdnsd
// and PowerDNS with Lua records at the other site answer otherwise: all of them watch the
// same machine at the same time.
func TestFailover(t *testing.T) {
	if !*dnsRates {
		t.Skip("asked for with -dns")
	}
	rounds := 3
	if *full {
		rounds = 7
	}
	for _, preset := range []string{"default", "fast"} {
		t.Run(preset, func(t *testing.T) {
			f := newFacility(t)
			one, two := f.install(preset)
			subjects := []subject{
				{"msgw, " + preset, liveAddr + ":53", benchZone + ".", dns.TypeMX, func(rrs []dns.RR) bool {
					return slices.ContainsFunc(rrs, func(rr dns.RR) bool {
						mx := rr.(*dns.MX)
						return mx.Preference == 100 && strings.HasPrefix(mx.Mx, "msgw2.")
					})
				}},
				f.gdnsd(), f.powerDNS(),
			}
			all := func(without bool, limit time.Duration) map[string]time.Duration {
				took := map[string]time.Duration{}
				type result struct {
					name string
					d    time.Duration
					err  error
				}
				results := make(chan result)
				for _, s := range subjects {
					go func() {
						d, err := s.until(without, limit)
						results <- result{s.name, d, err}
					}()
				}
				for range subjects {
					r := <-results
					if r.err != nil {
						t.Error(r.err)
					}
					took[r.name] = r.d
				}
				return took
			}
			down, up := map[string]map[string][]time.Duration{}, map[string]map[string][]time.Duration{}
			note := func(m map[string]map[string][]time.Duration, event string, took map[string]time.Duration) {
				if m[event] == nil {
					m[event] = map[string][]time.Duration{}
				}
				for n, d := range took {
					m[event][n] = append(m[event][n], d)
				}
			}
			all(false, 30*time.Second)
			time.Sleep(5 * time.Second)
			if t.Failed() {
				return
			}
			// Each death that follows soon upon another one doubles the time until a site is
			// back; who restarts has forgotten that.
			fresh := func() {
				one.Stop(syscall.SIGKILL)
				one = f.serve("one")
				all(false, 30*time.Second)
				time.Sleep(3 * time.Second)
			}
			for round := range rounds {
				time.Sleep(time.Duration(round*317) * time.Millisecond) // another moment of everybody's interval
				two.Stop(syscall.SIGKILL)
				note(down, "killed", all(true, time.Minute))
				two = f.serve("two")
				note(up, "killed", all(false, time.Minute))
				fresh()
				f.ip("-n", "two", "link", "set", "eth0", "down")
				note(down, "silent", all(true, time.Minute))
				f.ip("-n", "two", "link", "set", "eth0", "up")
				note(up, "silent", all(false, time.Minute))
				fresh()
			}
			var b strings.Builder
			fmt.Fprintln(&b, "\n| event | name server | until it is answered last, s | until it is back, s |\n|---|---|---:|---:|")
			for _, event := range []string{"killed", "silent"} {
				for _, s := range subjects {
					fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", event, s.name, seconds(down[event][s.name]), seconds(up[event][s.name]))
				}
			}
			t.Log(b.String())
		})
	}
}

// seconds writes the median, the least and the most.
func seconds(ds []time.Duration) string {
	if len(ds) == 0 {
		return "–"
	}
	ds = slices.Sorted(slices.Values(ds))
	return fmt.Sprintf("%.2f (%.2f–%.2f)", ds[len(ds)/2].Seconds(), ds[0].Seconds(), ds[len(ds)-1].Seconds())
}

func (f facility) config(machine string) string {
	return filepath.Join(os.TempDir(), "failover-"+machine+".toml")
}

func (f facility) state(machine string) string { return filepath.Join(f.t.TempDir(), machine) }

// install makes the two sites and runs them.
func (f facility) install(preset string) (one, two *peers.Process) {
	f.t.Helper()
	for machine, name := range map[string]string{"one": "msgw1", "two": "msgw2"} {
		addr := map[string]string{"one": liveAddr, "two": deadAddr}[machine]
		text := fmt.Sprintf("name = %q\nstate = %q\n[listen]\npeer = \"%s:8451\"\n[public]\nipv4 = [%q]\n[health]\npreset = %q\n[dns]\nrate = 0\n",
			name, f.state(machine), addr, addr, preset)
		if err := os.WriteFile(f.config(machine), []byte(text), 0o600); err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { os.Remove(f.config(machine)) })
	}
	f.must("one", "init", "--config", f.config("one"), "--zone", benchZone)
	one = f.serve("one")
	var token string
	dir := f.dir("one")
	labtest.Within(f.t, 30*time.Second, "an invitation", func() error {
		out, err := f.command("one", peers.Program("msgw"), "invite", "--dir", dir).Output()
		token = strings.TrimSpace(string(out))
		return err
	})
	f.must("two", "join", token, "--config", f.config("two"))
	return one, f.serve("two")
}

// dir reads the state directory of a machine from its configuration.
func (f facility) dir(machine string) string {
	b, err := os.ReadFile(f.config(machine))
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Split(strings.Split(string(b), "state = \"")[1], "\"")[0]
}

func (f facility) serve(machine string) *peers.Process {
	f.t.Helper()
	return peers.Start(f.t, machine, f.command(machine, peers.Program("msgw"), "serve", "--config", f.config(machine)))
}

// inRoot runs a program of the name servers' root on the live machine.
func (f facility) inRoot(name, program string, args ...string) {
	f.t.Helper()
	cmd := f.command("one", "chroot", append([]string{nameservers.Path("/"), program}, args...)...)
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "/"
	peers.Start(f.t, name, cmd)
}

// onlyLive reports whether the answer lacks the dead machine.
func onlyLive(rrs []dns.RR) bool {
	return !slices.ContainsFunc(rrs, func(rr dns.RR) bool { a, ok := rr.(*dns.A); return ok && a.A.String() == deadAddr })
}

// gdnsd watches port 25 as often as it can and believes the first answer.
func (f facility) gdnsd() subject {
	f.t.Helper()
	const dir = "/srv/gdnsd-failover"
	nameservers.Write(f.t, dir+"/config", `options => {
  listen => "`+liveAddr+`:5301"
  run_dir => "`+dir+`/run"
  state_dir => "`+dir+`/state"
}
service_types => {
  smtp => { plugin => "tcp_connect", port => 25, interval => 2, timeout => 1, up_thresh => 1, ok_thresh => 1, down_thresh => 1 }
}
plugins => {
  multifo => {
    mx => { service_types => smtp, up_thresh => 0.1, one => `+liveAddr+`, two => `+deadAddr+` }
  }
}
`, 0o644)
	nameservers.Write(f.t, dir+"/zones/"+benchZone, "@ 3600 SOA msgw1 hostmaster.example.com. ( 1 14400 3600 604800 60 )\n@ 3600 NS msgw1\nmsgw1 300 A "+liveAddr+"\nmx 60 DYNA multifo!mx\n", 0o644)
	for _, d := range []string{"run", "state"} {
		if err := os.MkdirAll(nameservers.Path(dir+"/"+d), 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	f.inRoot("gdnsd", "/usr/sbin/gdnsd", "-c", dir, "start")
	return subject{"gdnsd, tightest", liveAddr + ":5301", "mx." + benchZone + ".", dns.TypeA, onlyLive}
}

// powerDNS looks every second.
func (f facility) powerDNS() subject {
	f.t.Helper()
	const dir = "/srv/pdns-failover"
	nameservers.Write(f.t, dir+"/zone", benchApex+benchHosts+"mx."+benchZone+`. 60 IN LUA A "ifportup(25, {'`+liveAddr+`', '`+deadAddr+`'}, {selector='all', timeout=1})"`+"\n", 0o644)
	nameservers.Write(f.t, dir+"/named.conf", `zone "`+benchZone+`" { type master; file "`+dir+`/zone"; };`+"\n", 0o644)
	nameservers.Write(f.t, dir+"/pdns.conf", `launch=bind
security-poll-suffix=
bind-config=`+dir+`/named.conf
local-address=`+liveAddr+`
local-port=5302
socket-dir=`+dir+`
enable-lua-records=yes
lua-health-checks-interval=1
cache-ttl=0
query-cache-ttl=0
negquery-cache-ttl=0
daemon=no
guardian=no
`, 0o644)
	f.inRoot("pdns", "/usr/sbin/pdns_server", "--config-dir="+dir)
	return subject{"PowerDNS Lua, 1 s", liveAddr + ":5302", "mx." + benchZone + ".", dns.TypeA, onlyLive}
}
