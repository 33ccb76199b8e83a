package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Names of the files of a seed. A credential has the same name, with "msgw." before it
// unless it begins so.
const (
	configFile   = "msgw.toml"     // what only this node knows, see deploy/msgw.toml
	commandFile  = "first-boot"    // how the node is made: "init ..." or "join TOKEN"
	passwordFile = "root-password" // crypt(3) hash for root's login on the console
	networkFile  = "network"       // systemd.network(5) instead of DHCP
	peersFile    = "peers"         // addresses of the other nodes, one on each line
)

var seedFiles = []string{configFile, commandFile, passwordFile, networkFile, peersFile}

// maxSeedFile bounds what is read of a file.
const maxSeedFile = 1 << 20

// seed is what was attached to the machine, by file name.
type seed map[string]string

// readSeed reads those files of a seed that are in dir.
func readSeed(dir string, name func(string) string) (seed, error) {
	s := seed{}
	for _, file := range seedFiles {
		f, err := os.Open(filepath.Join(dir, name(file)))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(f, maxSeedFile+1))
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if len(b) > maxSeedFile {
			return nil, fmt.Errorf("%s: more than %d octets", file, maxSeedFile)
		}
		s[file] = string(b)
	}
	return s, nil
}

// onVolume and asCredential are the names of a file of a seed there.
func onVolume(file string) string { return file }

func asCredential(file string) string {
	if strings.HasPrefix(file, "msgw.") {
		return file
	}
	return "msgw." + file
}

// names lists what the seed holds.
func (s seed) names() string {
	var names []string
	for _, f := range seedFiles {
		if _, ok := s[f]; ok {
			names = append(names, f)
		}
	}
	return strings.Join(names, ", ")
}

// check says what is wrong with a seed. msgw.toml is judged by msgw itself, elsewhere.
func (s seed) check() error {
	if _, ok := s[commandFile]; ok {
		if _, ok := s[configFile]; !ok {
			return fmt.Errorf("%s: there is no %s with it", commandFile, configFile)
		}
		if _, err := parseCommand(s[commandFile]); err != nil {
			return fmt.Errorf("%s: %w", commandFile, err)
		}
	}
	if p, ok := s[passwordFile]; ok {
		if err := checkHash(strings.TrimSpace(p)); err != nil {
			return fmt.Errorf("%s: %w", passwordFile, err)
		}
	}
	if n, ok := s[networkFile]; ok {
		if err := checkNetwork(n); err != nil {
			return fmt.Errorf("%s: %w", networkFile, err)
		}
	}
	if p, ok := s[peersFile]; ok {
		if _, err := peerRules(p); err != nil {
			return fmt.Errorf("%s: %w", peersFile, err)
		}
	}
	return nil
}

// nodeFacts are the two keys of msgw.toml that the appliance itself goes by.
type nodeFacts struct {
	Name  string `toml:"name"`
	State string `toml:"state"`
}

// facts reads them; that the rest is right is for msgw to say.
func facts(config string) (nodeFacts, error) {
	f := nodeFacts{State: stateDir}
	if err := toml.Unmarshal([]byte(config), &f); err != nil {
		return f, err
	}
	if filepath.Clean(f.State) != stateDir {
		return f, fmt.Errorf("state: %q, expected %s on an appliance", f.State, stateDir)
	}
	return f, nil
}

// command is how a node is made.
type command struct {
	args  []string // of msgw, without --config
	stdin string   // the token, which is not to be seen in the list of processes
}

// parseCommand reads the one line of first-boot.
func parseCommand(text string) (command, error) {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		return command{}, fmt.Errorf("%d lines, expected one: init ... or join TOKEN", len(lines))
	}
	words := strings.Fields(lines[0])
	switch {
	case words[0] == "init":
		for _, w := range words {
			if w == "--config" || strings.HasPrefix(w, "--config=") {
				return command{}, errors.New("--config is not to be given: it is the seed's msgw.toml")
			}
		}
		return command{args: words}, nil
	case words[0] == "join" && len(words) == 2 && !strings.HasPrefix(words[1], "-"):
		return command{args: []string{"join", "-"}, stdin: words[1]}, nil
	case words[0] == "join":
		return command{}, errors.New("join is not followed by one token") // which is not shown
	}
	return command{}, errors.New("expected init ... or join TOKEN")
}

// hashForm is what crypt(5) calls a hash of yescrypt, gost-yescrypt, scrypt, bcrypt,
// sha512crypt or sha256crypt.
var hashForm = regexp.MustCompile(`^\$(y|gy|7|2[aby]|6|5)\$[^\s:;*!\\]{10,400}$`)

func checkHash(h string) error {
	if !hashForm.MatchString(h) {
		return errors.New("expected a hash of crypt(5), as `openssl passwd -6` or `mkpasswd` makes it, and not the password")
	}
	return nil
}

// checkNetwork says whether a text can be a .network file that matches something.
func checkNetwork(text string) error {
	section, matches := "", 0
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			section = line
		case section == "" || !strings.Contains(line, "="):
			return fmt.Errorf("line %d: expected [Section] or Key=Value, see systemd.network(5)", n)
		case section == "[Match]":
			matches++
		}
	}
	if matches == 0 {
		return errors.New("no [Match] with a Name= or MACAddress=, see systemd.network(5)")
	}
	return nil
}

// peerRules makes of a list of addresses and networks what nft reads.
func peerRules(text string) (string, error) {
	var v4, v6 []netip.Prefix
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := netip.ParsePrefix(line)
		if a, aerr := netip.ParseAddr(line); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() || p.Bits() == 0 {
			return "", fmt.Errorf("line %d: %q, expected an address or a network, as in 192.0.2.2", n, line)
		}
		if p = p.Masked(); p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return peerRule("peers4", v4) + peerRule("peers6", v6), nil
}

func peerRule(set string, list []netip.Prefix) string {
	slices.SortFunc(list, netip.Prefix.Compare)
	var elements []string
	for i, p := range list {
		// An interval set refuses elements that overlap. In this order a network comes
		// before what lies in it.
		if !slices.ContainsFunc(list[:i], p.Overlaps) {
			elements = append(elements, p.String())
		}
	}
	if len(elements) == 0 {
		return ""
	}
	return fmt.Sprintf("add element inet msgw %s { %s }\n", set, strings.Join(elements, ", "))
}
