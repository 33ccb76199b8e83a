package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// adopt makes the configuration in dir the one in force: /etc/msgw shows it, root's
// login follows it, and the login prompt says how things stand, and the note.
func (a *appliance) adopt(dir string, note ...string) error {
	return errors.Join(a.activate(dir), a.rootLogin(dir), a.issue(dir, note))
}

// activate points /etc/msgw to dir, and networkd to the network in it if there is one.
func (a *appliance) activate(dir string) error {
	if err := a.link(activeLink, dir); err != nil {
		return err
	}
	if _, err := os.Stat(a.path(dir, networkFile)); err == nil {
		return a.link(networkLink, filepath.Join(activeLink, networkFile))
	}
	if err := os.Remove(a.path(networkLink)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// link makes a symbolic link from name to target, in one step.
func (a *appliance) link(name, target string) error {
	link := a.path(name)
	if err := os.Remove(link + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, link+".new"); err != nil {
		return err
	}
	return os.Rename(link+".new", link)
}

// rootLogin sets root's password to the hash in dir, or locks it. /etc is in memory,
// so this is done at every start.
func (a *appliance) rootLogin(dir string) error {
	hash := "*"
	b, err := os.ReadFile(a.path(dir, passwordFile))
	if err == nil {
		hash = strings.TrimSpace(string(b))
		if err := checkHash(hash); err != nil {
			return fmt.Errorf("%s: %w", passwordFile, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	path := a.path(shadowFile)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if b, err = os.ReadFile(path); err != nil {
		return err
	}
	lines := strings.SplitAfter(string(b), "\n")
	for i, line := range lines {
		if f := strings.Split(line, ":"); f[0] == "root" && len(f) > 1 {
			f[1] = hash
			lines[i] = strings.Join(f, ":")
			return os.WriteFile(path, []byte(strings.Join(lines, "")), info.Mode())
		}
	}
	return fmt.Errorf("%s has no line for root", shadowFile)
}

// issue writes what stands above the login prompt. agetty(8) puts the addresses in.
func (a *appliance) issue(dir string, note []string) error {
	made, err := a.made()
	if err != nil {
		return err
	}
	var lines []string
	name := ""
	b, err := os.ReadFile(a.path(dir, configFile))
	switch {
	case err == nil:
		f, err := facts(string(b))
		if err != nil {
			note = append(note, configFile+": "+oneLine(err.Error()))
		}
		name = " " + f.Name
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	lines = append(lines, "msgw"+escape(name)+"  address \\4 \\6")
	for _, n := range note {
		lines = append(lines, escape(oneLine(n)))
	}
	switch {
	case made:
	case name == "":
		lines = append(lines, "This appliance has no configuration. Attach a volume labelled CIDATA that holds",
			"msgw.toml, first-boot (\"init --zone ZONE\" or \"join TOKEN\") and root-password, and",
			"restart; or set them as systemd credentials.")
	case dir == keptDir:
		lines = append(lines, "There is an msgw.toml and no node. Make one, as root: runuser -u msgw -- msgw init",
			"--zone ZONE, or: runuser -u msgw -- msgw join TOKEN; then systemctl start msgw.")
	}
	if _, err := os.Stat(a.path(dir, passwordFile)); errors.Is(err, fs.ErrNotExist) {
		lines = append(lines, "Nobody can log in here: no root-password was given.")
	} else if made {
		lines = append(lines, "Log in as root; `msgw status` says how it is.")
	}
	return os.WriteFile(a.path(issueFile), []byte("\n"+strings.Join(lines, "\n")+"\n\n"), 0o644)
}

// escape keeps a text from meaning anything to agetty.
func escape(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }

// oneLine makes one printable line of a text.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s[:min(len(s), 400)])
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
