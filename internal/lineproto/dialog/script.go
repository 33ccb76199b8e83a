// Package dialog plays exchanges of line protocols that are written down, one
// small text file each. It is for tests.
//
// A script is read line by line; empty lines and those that begin with # say
// nothing. What the client does:
//
//	C: text          sends text and CRLF
//	C- octets        sends octets and no CRLF
//	C.               ends what it sends: half-closes, over TLS with close_notify
//	C!               half-closes TCP, over TLS without saying so
//	TLS              makes the TLS handshake, now
//
// What the server has to do:
//
//	S: text          says the line text; text... allows any line that begins so
//	S- octets        says the line that consists of octets
//	S~ regexp        says a line that the expression matches as a whole
//	S* regexp        says any number of such lines, and then another line
//	S.               says no more, and ends the connection, over TLS with close_notify
//	S. regexp        says octets that the expression matches as a whole, and ends it so
//	S! regexp        the same, but breaks off: without close_notify, if over TLS
//
// Octets are Go strings in quotes, a repeated one with its count before it:
// 5000*"A" "\r\n". A line of the server ends with CRLF, and with nothing else.
//
// Before the first of these, "OPTION name value" tells the test something. INCLUDE
// plays another file of the same directory. Any other word in capitals is done by
// the test; see Player.Do.
package dialog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Script is an exchange that was read.
type Script struct {
	Name    string // of its file, without directory and ending
	options map[string]string
	steps   []step
}

// step is one line of a script.
type step struct {
	file    string
	line    int
	verb    string
	arg     string // what stands behind verb and a space
	octets  []byte // what is to be sent or said
	prefix  bool   // a line may go on behind octets
	pattern *regexp.Regexp
}

func (s *step) at() string { return fmt.Sprintf("%s:%d", s.file, s.line) }

// Option returns the value of an option, and whether it is set.
func (s *Script) Option(name string) (value string, ok bool) {
	value, ok = s.options[name]
	return value, ok
}

// Options returns the names of the options that are set.
func (s *Script) Options() []string {
	var names []string
	for n := range s.options {
		names = append(names, n)
	}
	return names
}

// Load reads a script from a file.
func Load(path string) (*Script, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parse(path, string(text), 0)
}

// LoadAll reads the scripts *.dialog of a directory.
func LoadAll(dir string) ([]*Script, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.dialog"))
	if err != nil {
		return nil, err
	}
	var all []*Script
	for _, p := range paths {
		s, err := Load(p)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no script in %s", dir)
	}
	return all, nil
}

// Parse reads a script. Errors name it as file.
func Parse(file, text string) (*Script, error) { return parse(file, text, 0) }

// maxDepth is how deep files may include others.
const maxDepth = 4

func parse(file, text string, depth int) (*Script, error) {
	base := filepath.Base(file)
	s := &Script{Name: strings.TrimSuffix(base, filepath.Ext(base)), options: map[string]string{}}
	number := 0
	for l := range strings.Lines(text) {
		number++
		l = strings.TrimSuffix(l, "\n")
		if l == "" || l[0] == '#' {
			continue
		}
		st := step{file: file, line: number}
		if err := s.add(st, l, depth); err != nil {
			return nil, fmt.Errorf("%s: %w", st.at(), err)
		}
	}
	return s, nil
}

func (s *Script) add(st step, line string, depth int) (err error) {
	st.verb, st.arg, _ = strings.Cut(line, " ")
	switch st.verb {
	case "C:":
		st.octets = []byte(st.arg + "\r\n")
	case "C-", "S-":
		st.octets, err = Octets(st.arg)
	case "S:":
		st.octets = []byte(st.arg)
		if cut, ok := strings.CutSuffix(st.arg, "..."); ok {
			st.octets, st.prefix = []byte(cut), true
		}
	case "S.", "S!":
		if st.arg != "" {
			st.pattern, err = regexp.Compile(`\A(?s:` + st.arg + `)\z`)
		}
	case "S~", "S*":
		st.pattern, err = regexp.Compile(`\A(?s:` + st.arg + `)\z`)
	case "C.", "C!", "TLS":
		if st.arg != "" {
			err = fmt.Errorf("%s stands alone", st.verb)
		}
	case "OPTION":
		name, value, _ := strings.Cut(st.arg, " ")
		if len(s.steps) > 0 {
			return errors.New("an option stands before what is done")
		}
		s.options[name] = value
		return nil
	case "INCLUDE":
		return s.include(st, depth)
	default:
		if !word.MatchString(st.verb) {
			err = fmt.Errorf("%q is no line of a script", line)
		}
	}
	s.steps = append(s.steps, st)
	return err
}

var word = regexp.MustCompile(`^[A-Z]{2,}$`)

func (s *Script) include(st step, depth int) error {
	if depth >= maxDepth {
		return errors.New("files include one another too deeply")
	}
	path := filepath.Join(filepath.Dir(st.file), st.arg)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	other, err := parse(path, string(text), depth+1)
	if err != nil {
		return err
	}
	s.steps = append(s.steps, other.steps...)
	return nil
}

// Octets reads strings in quotes, each with a count before it or none:
// 5000*"A" "\r\n".
func Octets(s string) ([]byte, error) {
	var all []byte
	for s = strings.TrimLeft(s, " "); s != ""; s = strings.TrimLeft(s, " ") {
		count := 1
		if c, rest, ok := strings.Cut(s, "*"); ok && s[0] != '"' && s[0] != '`' {
			n, err := strconv.ParseUint(c, 10, 31)
			if err != nil {
				return nil, fmt.Errorf("%q is no count", c)
			}
			count, s = int(n), rest
		}
		quoted, err := strconv.QuotedPrefix(s)
		if err != nil {
			return nil, fmt.Errorf("expected octets in quotes, found %q", s)
		}
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", quoted, err)
		}
		all = append(all, strings.Repeat(text, count)...)
		s = s[len(quoted):]
	}
	return all, nil
}
