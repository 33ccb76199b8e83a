package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/test/labtest"
)

// TestDisasterDocument plays docs/disaster.md from its first box to its last, and compares
// what the program prints with what the document says. Between the boxes, comments say
// what happens to the machines.
func TestDisasterDocument(t *testing.T) {
	t.Parallel()
	d := &document{pair: newPair(t)}
	for site := range 2 {
		d.becomes(site, "SYNC")
	}
	boxes, box, where := 0, []string(nil), ""
	for line := range strings.Lines(read(t, "docs", "disaster.md")) {
		line = strings.TrimSuffix(line, "\n")
		opened, console := strings.CutPrefix(line, "```console ")
		step, isStep := strings.CutPrefix(line, "<!-- test: ")
		switch {
		case console:
			where, box = opened, []string{}
		case line == "```" && box != nil:
			d.box(where, box)
			boxes, box = boxes+1, nil
		case box != nil:
			box = append(box, line)
		case isStep:
			d.step(strings.Fields(strings.TrimSuffix(step, " -->")))
		}
		if t.Failed() {
			t.Fatalf("so far: %q", line)
		}
	}
	if boxes < 12 {
		t.Errorf("only %d boxes", boxes)
	}
}

type document struct {
	*pair
	token string // that was printed last
}

func (d *document) site(name string) int {
	i := slices.IndexFunc(d.nodes, func(n lab.NodeRow) bool { return n.Name == name })
	if i < 0 {
		d.t.Fatalf("no site is named %q", name)
	}
	return i
}

// step lets something happen to a machine, or waits.
func (d *document) step(words []string) {
	d.t.Helper()
	site := d.site(words[1])
	switch words[0] {
	case "kill", "start":
		d.lab(words[0], words[1])
	case "lose":
		d.lab("kill", words[1])
		if err := os.RemoveAll(d.nodes[site].Dir); err != nil {
			d.t.Fatal(err)
		}
	case "run":
		d.msgw(site, 0, words[2:]...)
	case "wait":
		labtest.Within(d.t, 40*time.Second, strings.Join(words, " "), func() error {
			s, err := d.tryStatus(site)
			if err != nil {
				return err
			}
			ok := false
			switch words[2] {
			case "noquorum":
				ok = !s.Quorum
			case "sync":
				ok = s.Quorum && len(s.Voters) == 2 && s.Copies.State == "SYNC"
			case "quiet":
				ok = len(s.Trouble) == 0 && s.Copies.State == "SYNC"
			case "fork":
				ok = slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.HasPrefix(x, "fork: ") })
			}
			if !ok {
				return fmt.Errorf("quorum %v, voters %v, copies %+v, trouble %q", s.Quorum, s.Voters, *s.Copies, s.Trouble)
			}
			return nil
		})
	default:
		d.t.Fatalf("step %q", words)
	}
}

// box runs the commands of a box and compares what they print.
func (d *document) box(where string, lines []string) {
	d.t.Helper()
	name, fresh := strings.CutPrefix(where, "new ")
	site := d.site(name)
	for len(lines) > 0 {
		command, ok := strings.CutPrefix(lines[0], "$ msgw ")
		if !ok {
			d.t.Fatalf("%q is no command", lines[0])
		}
		end := 1 + slices.IndexFunc(lines[1:], func(l string) bool { return strings.HasPrefix(l, "$ ") })
		if end == 0 {
			end = len(lines)
		}
		want := lines[1:end]
		lines = lines[end:]
		args := strings.Fields(strings.ReplaceAll(command, "TOKEN", d.token))
		if fresh {
			args = append(args, "--config", filepath.Join(d.Dir, name+".toml"))
		} else {
			args = append(args, "--dir", d.nodes[site].Dir)
		}
		out, err := d.Msgw(args...)
		if code := exitCodeOf(err); code != 0 && args[0] != "status" {
			d.t.Fatalf("%s: msgw %s: exit code %d\n%s", where, command, code, out)
		}
		if m := regexp.MustCompile(`msgw-(?:join|yield)-1-\S+`).FindString(out); m != "" {
			d.token = m
		}
		if err := compare(strings.Split(strings.TrimSpace(out), "\n"), want); err != nil {
			d.t.Errorf("%s: msgw %s: %v\n%s", where, command, err, out)
		}
	}
}

// masks hide what differs from one appliance to the next.
var masks = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`msgw-(join|yield)-1-\S+`), "TOKEN"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`epoch \d+-[0-9a-f]{16}`), "EPOCH"},
	{regexp.MustCompile(`in \d+-[0-9a-f]{16}`), "EPOCH"},
	{regexp.MustCompile(`\d+\.\d+\.\d+\.\d+:\d+`), "ADDRESS"},
	{regexp.MustCompile(`\b0\.1\.0\S*`), "VERSION"},
	{regexp.MustCompile(`(entry|command|revision|applied|for) \d+(m?s)?`), "$1 N"},
	{regexp.MustCompile(`leader \S+, voters .*`), "VOTERS"},
	{regexp.MustCompile(`\S*/msgw1?(\.toml)?$`), "PATH"},
	{regexp.MustCompile(` +`), " "},
}

func masked(line string) string {
	for _, m := range masks {
		line = m.re.ReplaceAllString(line, m.to)
	}
	return strings.TrimSpace(line)
}

// compare holds what was printed against what the document says, where ... stands for
// any lines.
func compare(got, want []string) error {
	i := 0
	skip := false
	for _, w := range want {
		if w == "..." {
			skip = true
			continue
		}
		for {
			if i == len(got) {
				return fmt.Errorf("the document says %q, which was not printed", w)
			}
			same := masked(got[i]) == masked(w)
			i++
			if same {
				break
			}
			if !skip {
				return fmt.Errorf("printed %q, the document says %q", masked(got[i-1]), masked(w))
			}
		}
		skip = false
	}
	if i < len(got) && !skip {
		return errors.New("more was printed than the document says, from " + got[i])
	}
	return nil
}
