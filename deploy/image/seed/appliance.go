package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"msgw/internal/durable"
)

// Where things are, under appliance.root.
const (
	stateDir   = "/var/lib/msgw"        // msgw's
	keptDir    = "/var/lib/msgw-config" // the configuration, for good
	stagedDir  = "/run/msgw-seed"       // the seed, until the node is made
	activeLink = "/etc/msgw"            // to one of these two
	// networkLink comes before the file that asks for a lease.
	networkLink = "/etc/systemd/network/10-msgw.network"
	shadowFile  = "/etc/shadow"
	issueFile   = "/etc/issue"
	// unfinished is in keptDir while a node is being made. What is in the state directory
	// then is of no use, as msgw never ran from it.
	unfinished = "first-boot-unfinished"
	rulesFile  = "peers.nft" // what nft reads, made of peers
)

// keptFiles are the files that an appliance keeps. msgw.toml comes last: it makes the
// others count.
var keptFiles = []string{passwordFile, networkFile, rulesFile, configFile}

// appliance is the machine, as far as its configuration goes.
type appliance struct {
	root        string // before every path; empty but in tests
	credentials string // directory of systemd's credentials; empty: none
	patience    time.Duration
	pause       time.Duration

	say  func(format string, args ...any)
	run  func(ctx context.Context, stdin string, args ...string) (string, error) // msgw, as its user
	find func() (place string, s seed, err error)
}

func (a *appliance) path(p ...string) string {
	return filepath.Join(append([]string{a.root}, p...)...)
}

// take brings the configuration in force: the kept one, or that of a seed.
func (a *appliance) take() error {
	made, err := a.made()
	if err != nil {
		return err
	}
	if made {
		a.say("configured already, no seed is read")
		return a.adopt(keptDir)
	}
	place, s, err := a.seed()
	if err == nil && len(s) > 0 {
		err = a.stage(s)
	}
	if err != nil {
		reason := oneLine(strings.TrimPrefix(place+": ", ": ") + err.Error())
		return errors.Join(errors.New(reason), a.adopt(keptDir, "The seed was refused: "+reason))
	}
	if len(s) == 0 {
		a.say("no seed: no volume is labelled CIDATA, and no credential is set")
		return a.adopt(keptDir)
	}
	a.say("%s: took %s", place, s.names())
	if _, ok := s[commandFile]; ok {
		return a.adopt(stagedDir, "The node is being made.") // firstBoot goes on
	}
	if err := a.keep(); err != nil {
		return err
	}
	return a.adopt(keptDir)
}

// made says whether this appliance has its configuration and a node, whole.
func (a *appliance) made() (bool, error) {
	if _, err := os.Stat(a.path(keptDir, configFile)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if _, err := os.Stat(a.path(keptDir, unfinished)); err == nil {
		return false, nil
	}
	empty, err := a.stateEmpty()
	return !empty, err
}

func (a *appliance) stateEmpty() (bool, error) {
	entries, err := os.ReadDir(a.path(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return len(entries) == 0, err
}

// seed returns the first seed there is, and where it was. It may be empty.
func (a *appliance) seed() (place string, s seed, err error) {
	place, s, err = a.find()
	if err != nil || len(s) > 0 {
		return place, s, err
	}
	if place != "" {
		a.say("%s: holds none of %s", place, strings.Join(seedFiles, ", "))
	}
	if a.credentials == "" {
		return "", nil, nil
	}
	s, err = readSeed(a.credentials, asCredential)
	return "credentials", s, err
}

// stage checks a seed and puts it where msgw can read it, or leaves nothing.
func (a *appliance) stage(s seed) (err error) {
	if err := os.RemoveAll(a.path(stagedDir)); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	if _, ok := s[commandFile]; ok {
		unfinishedNode := false
		if _, err := os.Stat(a.path(keptDir, unfinished)); err == nil {
			unfinishedNode = true
		}
		empty, err := a.stateEmpty()
		if err != nil {
			return err
		}
		if !empty && !unfinishedNode {
			return fmt.Errorf("%s: there is a node in %s already; without %s, the rest of the seed is taken", commandFile, stateDir, commandFile)
		}
	}
	if err := os.Mkdir(a.path(stagedDir), 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(a.path(stagedDir)))
		}
	}()
	for name, text := range s {
		mode := fs.FileMode(0o644)
		switch name {
		case peersFile:
			name = rulesFile
			if text, err = peerRules(text); err != nil {
				return err
			}
		case passwordFile, commandFile:
			mode = 0o600
		}
		if err := os.WriteFile(a.path(stagedDir, name), []byte(text), mode); err != nil {
			return err
		}
	}
	if text, ok := s[configFile]; ok {
		return a.checkConfig(text)
	}
	return nil
}

// checkConfig has msgw judge the staged msgw.toml. `msgw init` reads the file before
// it looks at its flags, and refuses to go on without a zone.
func (a *appliance) checkConfig(text string) error {
	path := a.path(stagedDir, configFile)
	out, err := a.run(context.Background(), "", "init", "--config", path, "--zone=")
	var exit *exec.ExitError
	if err == nil || !errors.As(err, &exit) || exit.ExitCode() != 2 {
		return fmt.Errorf("%s: cannot be checked: msgw: %v %s", configFile, err, firstLine(out))
	}
	line := strings.TrimPrefix(firstLine(out), "msgw: ")
	if fault, ok := strings.CutPrefix(line, path+": "); ok {
		return fmt.Errorf("%s: %s", configFile, fault)
	}
	if !strings.HasPrefix(line, "zone: ") {
		return fmt.Errorf("%s: %s", configFile, line)
	}
	if _, err := facts(text); err != nil {
		return fmt.Errorf("%s: %w", configFile, err)
	}
	return nil
}

// firstBoot makes the node that the staged seed describes, and keeps the configuration.
func (a *appliance) firstBoot(ctx context.Context) error {
	b, err := os.ReadFile(a.path(stagedDir, commandFile))
	if err != nil {
		return err
	}
	c, err := parseCommand(string(b))
	if err != nil {
		return err
	}
	if err := a.make(ctx, c); err != nil {
		reason := oneLine(commandFile + ": " + err.Error())
		return errors.Join(errors.New(reason), os.RemoveAll(a.path(stagedDir)), a.adopt(keptDir, "The seed was refused: "+reason))
	}
	a.say("the node is made: msgw %s", strings.Join(c.shown(), " "))
	return a.adopt(keptDir)
}

// shown is the command without its token.
func (c command) shown() []string {
	if c.stdin != "" {
		return []string{c.args[0], "TOKEN"}
	}
	return c.args
}

func (a *appliance) make(ctx context.Context, c command) error {
	mark := a.path(keptDir, unfinished)
	if _, err := os.Stat(mark); err == nil {
		a.say("the power went while the node was being made: it is made again")
		if err := a.clearState(); err != nil {
			return err
		}
	}
	if err := durable.ReplaceFile(mark, nil); err != nil {
		return err
	}
	if err := a.attempts(ctx, c); err != nil {
		// msgw has taken back what it made.
		return errors.Join(err, os.Remove(mark), durable.SyncDir(a.path(keptDir)))
	}
	if err := a.keep(); err != nil {
		return err
	}
	return errors.Join(os.Remove(mark), durable.SyncDir(a.path(keptDir)))
}

// attempts runs the command. A node that joins tries for a while, as the way to the
// others may not be there yet.
func (a *appliance) attempts(ctx context.Context, c command) error {
	args := append(c.args, "--config", a.path(stagedDir, configFile))
	for end, first := time.Now().Add(a.patience), true; ; first = false {
		out, err := a.run(ctx, c.stdin, args...)
		if err == nil {
			return nil
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return err
		}
		line := strings.TrimPrefix(firstLine(out), "msgw: ")
		if c.stdin != "" {
			line = strings.ReplaceAll(line, c.stdin, "TOKEN")
		}
		if c.args[0] != "join" || time.Now().After(end) {
			return errors.New(line)
		}
		if first {
			a.say("not joined yet, trying for %v: %s", a.patience, line)
		}
		select {
		case <-time.After(a.pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *appliance) clearState() error {
	entries, err := os.ReadDir(a.path(stateDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(a.path(stateDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// keep writes what is staged to where it survives, and removes what an earlier seed
// left there.
func (a *appliance) keep() error {
	for _, name := range keptFiles {
		from, to := a.path(stagedDir, name), a.path(keptDir, name)
		f, err := os.Open(from)
		if errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(f)
		info, serr := f.Stat()
		f.Close()
		if err := errors.Join(err, serr); err != nil {
			return err
		}
		if err := durable.ReplaceFile(to, b); err != nil {
			return err
		}
		if err := os.Chmod(to, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return durable.SyncDir(a.path(keptDir))
}
