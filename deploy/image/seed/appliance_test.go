package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	testHash  = "$6$cSWNe1INbyRZwKbl$zPCDYo4BBoHFqHx1IQlsqrjRz8kTP6N0qVXnrvhQdeVyx3NkYb9zeuGbtGSEHhkKGSCSmdUtcBXlVHaRbQGxu/"
	testToken = "msgw-join-1-c2VjcmV0"
	goodToml  = "name = \"msgw1\"\n"
)

// program is the built msgw: what it says of a bad msgw.toml is what is relied on.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "msgw-seed-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(dir, "msgw")
	code := 1
	if out, err := exec.Command("go", "build", "-o", program, "msgw/cmd/msgw").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// rig is an appliance in a directory.
type rig struct {
	*appliance
	t     *testing.T
	said  []string
	calls []string // command lines that made a node, with what they read
	make  func() error
}

func newRig(t *testing.T, s seed) *rig {
	t.Helper()
	r := &rig{t: t}
	root := t.TempDir()
	for _, dir := range []string{keptDir, stateDir, "/run", "/etc/systemd/network"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.appliance = &appliance{root: root,
		say:  func(format string, args ...any) { r.said = append(r.said, fmt.Sprintf(format, args...)) },
		find: func() (string, seed, error) { return "volume", s, nil },
	}
	r.run = r.msgw
	r.make = func() error { return os.WriteFile(r.path(stateDir, "identity.json"), nil, 0o600) }
	r.write(shadowFile, "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n")
	r.write(issueFile, "Debian\n")
	if err := os.Symlink(keptDir, r.path(activeLink)); err != nil {
		t.Fatal(err)
	}
	return r
}

// msgw is the real one where a file is judged, and one that does as it is told where a
// node is to be made.
func (r *rig) msgw(ctx context.Context, stdin string, args ...string) (string, error) {
	if args[len(args)-1] == "--zone=" {
		return run(ctx, nil, program, stdin, args...)
	}
	r.calls = append(r.calls, strings.ReplaceAll(strings.Join(args, " "), r.root, "")+"|"+stdin)
	if err := r.make(); err != nil {
		return "msgw: " + err.Error() + "\nhint: none\n", &exec.ExitError{}
	}
	return "", nil
}

func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path(path), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(path string) string {
	r.t.Helper()
	b, err := os.ReadFile(r.path(path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Fatal(err)
	}
	return string(b)
}

// boot does what a start of the machine does, memory lost and all.
func (r *rig) boot(s seed) error {
	r.t.Helper()
	r.said, r.calls = nil, nil
	if err := os.RemoveAll(r.path(stagedDir)); err != nil {
		r.t.Fatal(err)
	}
	r.find = func() (string, seed, error) { return "volume", s, nil }
	err := r.take()
	if _, serr := os.Stat(r.path(stagedDir, commandFile)); serr == nil && err == nil {
		err = r.firstBoot(r.t.Context())
	}
	if r.read(shadowFile) == "" {
		r.t.Error("shadow is gone")
	}
	for _, secret := range []string{testHash, testToken} {
		if all := fmt.Sprint(r.said, err, r.read(issueFile)); strings.Contains(all, secret) {
			r.t.Errorf("a secret was said: %s", all)
		}
	}
	return err
}

func (r *rig) active() string {
	r.t.Helper()
	to, err := os.Readlink(r.path(activeLink))
	if err != nil {
		r.t.Fatal(err)
	}
	return to
}

// kept lists what survives a restart.
func (r *rig) kept() string {
	r.t.Helper()
	entries, err := os.ReadDir(r.path(keptDir))
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestFirstBoot(t *testing.T) {
	t.Parallel()
	network := "[Match]\nName=en*\n"
	full := seed{configFile: goodToml, commandFile: "init --zone a.example\n", passwordFile: testHash + "\n", networkFile: network, peersFile: "192.0.2.2\n"}
	r := newRig(t, nil)
	if err := r.boot(full); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.calls, "\n"); got != "init --zone a.example --config "+stagedDir+"/msgw.toml|" {
		t.Errorf("calls %q", got)
	}
	if r.kept() != "msgw.toml network peers.nft root-password" || r.active() != keptDir {
		t.Errorf("kept %q, in force %q", r.kept(), r.active())
	}
	if info, err := os.Stat(r.path(keptDir, passwordFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("root-password: %v %v", info.Mode(), err)
	}
	if info, err := os.Stat(r.path(keptDir, configFile)); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("msgw.toml: %v %v", info.Mode(), err)
	}
	if got := r.read(shadowFile); got != "root:"+testHash+":19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n" {
		t.Errorf("shadow %q", got)
	}
	if got, err := os.Readlink(r.path(networkLink)); got != "/etc/msgw/network" {
		t.Errorf("network: %q %v", got, err)
	}
	if got := r.read(issueFile); !strings.Contains(got, "msgw msgw1  address \\4 \\6\n") || !strings.Contains(got, "Log in as root") {
		t.Errorf("issue %q", got)
	}
	want := "volume: took msgw.toml, first-boot, root-password, network, peers|the node is made: msgw init --zone a.example"
	if got := strings.Join(r.said, "|"); got != want {
		t.Errorf("said %q", got)
	}

	// Another start takes nothing, whatever is attached.
	r.write(shadowFile, "root:*:19000:0:99999:7:::\n")
	if err := r.boot(seed{configFile: "name = \"other\"\n", commandFile: "init --zone b.example"}); err != nil {
		t.Fatal(err)
	}
	if len(r.calls) != 0 || r.read(keptDir+"/msgw.toml") != goodToml || !strings.Contains(r.read(shadowFile), testHash) {
		t.Errorf("the second start: calls %q, msgw.toml %q, shadow %q", r.calls, r.read(keptDir+"/msgw.toml"), r.read(shadowFile))
	}
	if got := strings.Join(r.said, "|"); got != "configured already, no seed is read" {
		t.Errorf("said %q", got)
	}
}

// TestRefused: nothing of a seed with a fault is left, and the next start with a better
// one works.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change seed
		reason string
	}{
		"unknown key":       {seed{configFile: goodToml + "nam = 1\n"}, "msgw.toml: line 2: unknown key nam"},
		"not TOML":          {seed{configFile: "name: msgw1\n"}, "msgw.toml: line 1"},
		"bad address":       {seed{configFile: goodToml + "[listen]\nsmtp = \"25\"\n"}, "msgw.toml: listen.smtp: \"25\""},
		"state elsewhere":   {seed{configFile: goodToml + "state = \"/srv/msgw\"\n"}, "msgw.toml: state: \"/srv/msgw\", expected /var/lib/msgw"},
		"other command":     {seed{commandFile: "serve"}, "first-boot: expected init"},
		"plain password":    {seed{passwordFile: "secret"}, "root-password: expected a hash"},
		"netplan":           {seed{networkFile: "network:\n"}, "network: line 1"},
		"a name for a peer": {seed{peersFile: "msgw2\n"}, "peers: line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := seed{configFile: goodToml, commandFile: "init --zone a.example", passwordFile: testHash}
			bad := seed{}
			for k, v := range good {
				bad[k] = v
			}
			for k, v := range c.change {
				bad[k] = v
			}
			r := newRig(t, nil)
			if err := r.boot(bad); err == nil || !strings.Contains(err.Error(), "volume: "+c.reason) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, expected %q", err, c.reason)
			}
			if _, err := os.Stat(r.path(stagedDir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("something is staged: %v", err)
			}
			if r.kept() != "" || r.active() != keptDir || len(r.calls) != 0 || !strings.Contains(r.read(shadowFile), "root:*:") {
				t.Errorf("kept %q, in force %q, calls %q, shadow %q", r.kept(), r.active(), r.calls, r.read(shadowFile))
			}
			if got := r.read(issueFile); !strings.Contains(got, "The seed was refused: volume: "+c.reason) || !strings.Contains(got, "no configuration") {
				t.Errorf("issue %q", got)
			}
			if err := r.boot(good); err != nil || len(r.calls) != 1 || r.kept() != "msgw.toml root-password" {
				t.Errorf("with a better seed: %v, calls %q, kept %q", err, r.calls, r.kept())
			}
		})
	}
}

// TestInitRefuses: what msgw itself says of its arguments is said on.
func TestInitRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.make = func() error { return errors.New("zone: \"x\", expected a full host name") }
	s := seed{configFile: goodToml, commandFile: "init --zone x", passwordFile: testHash}
	if err := r.boot(s); err == nil || err.Error() != "first-boot: zone: \"x\", expected a full host name" {
		t.Errorf("%v", err)
	}
	if len(r.calls) != 1 || r.kept() != "" || r.active() != keptDir || !strings.Contains(r.read(shadowFile), "root:*:") {
		t.Errorf("calls %q, kept %q, in force %q", r.calls, r.kept(), r.active())
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.patience, r.pause = time.Hour, time.Millisecond
	good := r.make
	failures := 3
	r.make = func() error {
		if failures--; failures >= 0 {
			return errors.New("192.0.2.1:8451: no route to host, token " + testToken)
		}
		return good()
	}
	if err := r.boot(seed{configFile: goodToml, commandFile: "join " + testToken}); err != nil {
		t.Fatal(err)
	}
	if len(r.calls) != 4 || r.calls[3] != "join - --config "+stagedDir+"/msgw.toml|"+testToken {
		t.Errorf("calls %q", r.calls)
	}
	want := "volume: took msgw.toml, first-boot|not joined yet, trying for 1h0m0s: 192.0.2.1:8451: no route to host, token TOKEN|the node is made: msgw join TOKEN"
	if got := strings.Join(r.said, "|"); got != want {
		t.Errorf("said %q", got)
	}

	// One that cannot be had at all.
	r = newRig(t, nil)
	r.patience, r.pause = 10*time.Millisecond, time.Millisecond
	r.make = func() error { return errors.New("not admitted: " + testToken) }
	if err := r.boot(seed{configFile: goodToml, commandFile: "join " + testToken}); err == nil || err.Error() != "first-boot: not admitted: TOKEN" {
		t.Errorf("%v", err)
	}
	if r.kept() != "" {
		t.Errorf("kept %q", r.kept())
	}
}

// TestPowerCut: the machine dies while the node is made, and later, between any two
// steps of keeping the configuration.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	s := seed{configFile: goodToml, commandFile: "init --zone a.example", passwordFile: testHash}
	r := newRig(t, nil)
	good := r.make
	r.make = func() error {
		good()
		panic("power cut")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("msgw was not called")
			}
		}()
		r.boot(s)
	}()
	r.make = func() error {
		if empty, err := r.stateEmpty(); !empty || err != nil {
			t.Errorf("the node is made in a directory that holds another: %v", err)
		}
		return good()
	}
	if err := r.boot(s); err != nil || len(r.calls) != 1 {
		t.Fatalf("after the cut: %v, calls %q", err, r.calls)
	}
	if r.kept() != "msgw.toml root-password" {
		t.Errorf("kept %q", r.kept())
	}

	// The cut comes when all is kept but the mark of the unfinished node stands.
	r.write(keptDir+"/"+unfinished, "")
	if err := r.boot(s); err != nil || len(r.calls) != 1 || r.kept() != "msgw.toml root-password" {
		t.Errorf("before the last step: %v, calls %q, kept %q", err, r.calls, r.kept())
	}
	if err := r.boot(s); err != nil || len(r.calls) != 0 {
		t.Errorf("the start after that: %v, calls %q", err, r.calls)
	}
}

// TestNodeStays: a node that lost its configuration is not made anew.
func TestNodeStays(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.write(stateDir+"/identity.json", "precious")
	err := r.boot(seed{configFile: goodToml, commandFile: "init --zone a.example"})
	if err == nil || !strings.Contains(err.Error(), "there is a node in /var/lib/msgw already") || r.read(stateDir+"/identity.json") != "precious" {
		t.Errorf("%v, identity %q", err, r.read(stateDir+"/identity.json"))
	}
	if err := r.boot(seed{configFile: goodToml}); err != nil || r.kept() != "msgw.toml" || len(r.calls) != 0 {
		t.Errorf("%v, kept %q, calls %q", err, r.kept(), r.calls)
	}
}

// TestWithoutNode: what is configured by hand goes on where the seed ended.
func TestWithoutNode(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	if err := r.boot(nil); err != nil || r.kept() != "" {
		t.Errorf("no seed: %v, kept %q", err, r.kept())
	}
	if got := r.read(issueFile); !strings.Contains(got, "no configuration") || !strings.Contains(got, "Nobody can log in") {
		t.Errorf("issue %q", got)
	}
	if err := r.boot(seed{passwordFile: testHash, peersFile: "192.0.2.2"}); err != nil || r.kept() != "peers.nft root-password" {
		t.Errorf("password only: %v, kept %q", err, r.kept())
	}
	if err := r.boot(seed{configFile: goodToml, passwordFile: testHash}); err != nil || r.kept() != "msgw.toml root-password" {
		t.Errorf("no first-boot: %v, kept %q", err, r.kept())
	}
	if got := r.read(issueFile); !strings.Contains(got, "There is an msgw.toml and no node.") {
		t.Errorf("issue %q", got)
	}
	if err := r.boot(nil); err != nil || r.kept() != "msgw.toml root-password" || !strings.Contains(r.read(shadowFile), testHash) {
		t.Errorf("and no seed after that: %v, kept %q", err, r.kept())
	}
}

// TestOrder: a volume comes before credentials, one without a seed on it does not.
func TestOrder(t *testing.T) {
	t.Parallel()
	credentials := t.TempDir()
	if err := os.WriteFile(filepath.Join(credentials, "msgw.toml"), []byte("name = \"credential\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		volume seed
		want   string
		said   string
	}{
		"volume":       {seed{configFile: goodToml}, goodToml, "volume: took msgw.toml"},
		"empty volume": {seed{}, "name = \"credential\"\n", "volume: holds none of msgw.toml, first-boot, root-password, network, peers|credentials: took msgw.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			r.credentials = credentials
			if err := r.boot(c.volume); err != nil || r.read(keptDir+"/msgw.toml") != c.want || strings.Join(r.said, "|") != c.said {
				t.Errorf("%v, kept %q, said %q", err, r.read(keptDir+"/msgw.toml"), r.said)
			}
		})
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	if got := oneLine("a\n b\tc\x1b[31m" + strings.Repeat("x", 1000)); strings.ContainsAny(got, "\n\t\x1b") || len(got) > 410 {
		t.Errorf("%q", got)
	}
}
