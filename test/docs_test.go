package test

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/test/labtest"
)

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{".."}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks returns the fenced blocks of a language in a text.
func blocks(text, language string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// TestReadme runs what README.md tells to type against a lab, and checks the
// metrics page against what the nodes export.
func TestReadme(t *testing.T) {
	t.Parallel()
	sh := blocks(read(t, "README.md"), "sh")
	if len(sh) != 2 {
		t.Fatalf("README.md has %d sh blocks, expected the two commands and the tour", len(sh))
	}
	if sh[0] != "go run ./cmd/msgw lab --demo      # the main job, on one machine\ngo test ./...                     # the tests\n" {
		t.Errorf("the two commands are not as they were promised:\n%s", sh[0]) // .ci/run runs them
	}
	dir := t.TempDir()
	l := labtest.Start(t, program, dir, "--net", loopback())
	for line := range strings.Lines(sh[1]) {
		line = strings.ReplaceAll(strings.TrimSpace(line), "/tmp/lab", dir)
		cmd := exec.Command("sh", "-c", strings.Replace(line, "./msgw", program, 1))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
	if !strings.Contains(read(t, "README.md"), "./msgw lab --dir /tmp/lab\n") {
		t.Error("README.md does not say how the lab of the tour is started")
	}

	// Some metrics begin with the first answer. A cookie that one site gave holds at the other.
	cookie := "0123456789abcdef"
	for i, n := range l.File().Nodes {
		m := new(dns.Msg).SetQuestion(zone+".", dns.TypeMX).SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie}}
		var r *dns.Msg
		labtest.Within(t, 30*time.Second, n.Name+" answers", func() (err error) { // it was started just now
			r, err = dns.Exchange(m, n.DNS)
			return err
		})
		if r.IsEdns0() == nil || len(r.IsEdns0().Option) != 1 {
			t.Fatalf("%s answers a cookie with %v", n.Name, r)
		}
		got := r.IsEdns0().Option[0].(*dns.EDNS0_COOKIE).Cookie
		if i == 0 && len(got) != 48 || i == 1 && got != cookie {
			t.Errorf("%s answers the cookie %s with %s", n.Name, cookie, got)
		}
		cookie = got
	}
	res, err := http.Get("http://" + l.File().Nodes[0].Metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	names := func(re, text string) []string {
		var out []string
		for _, m := range regexp.MustCompile(re).FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	have := names(`(?m)^# TYPE ((?:msgw|coredns)_\S+) `, string(b))
	said := names("(?m)^\\| `(\\S+)` \\|", read(t, "docs", "metrics.md"))
	if !slices.Equal(have, said) {
		t.Errorf("docs/metrics.md and /metrics differ:\nsaid %v\nhave %v", said, have)
	}
}

// Every box in the operators' documents is run by a test, which its second word says
// (test/peers/install), or says that it is not run. What goes into a configuration file is
// loaded by a test of internal/node.
func TestDocumentedBoxes(t *testing.T) {
	t.Parallel()
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil || len(docs) < 5 {
		t.Fatalf("docs: %v, %v", docs, err)
	}
	opening := regexp.MustCompile("^```(\\w*) ?([\\w ]*)$")
	for _, doc := range docs {
		inside, warned := false, false
		for line := range strings.Lines(read(t, doc[len("../"):])) {
			line = strings.TrimSuffix(line, "\n")
			m := opening.FindStringSubmatch(line)
			switch {
			case m != nil && inside:
				inside = false
			case m != nil:
				inside = true
				if ran := (m[1] == "sh" || m[1] == "console") && m[2] != "" || m[1] == "zone" || m[1] == "toml"; !ran && !warned {
					t.Errorf("%s: a box is neither run nor said not to be: %s", doc, line)
				}
			case strings.HasPrefix(line, "#"):
				warned = false
			case strings.Contains(strings.ToLower(line), "not run here"):
				warned = true
			}
		}
	}
}

// Every command that the documents name exists.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range append(docs, "../README.md", "../CHANGELOG.md") {
		text := read(t, doc[len("../"):])
		code := strings.Join(blocks(text, "(?:sh)?(?: \\w+)?"), "")
		for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(text, -1) {
			code += m[1] + "\n"
		}
		for _, m := range regexp.MustCompile(`(?m)^(?:\./)?msgw ([a-z]+(?: [a-z]+)?)`).FindAllStringSubmatch(code, -1) {
			seen[m[1]] = true
		}
	}
	if len(seen) < 12 {
		t.Fatalf("only %d commands found: %v", len(seen), seen)
	}
	for cmd := range seen {
		args := append(strings.Fields(cmd), "--help")
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Usage:\n  msgw "+args[0]) {
			t.Errorf("msgw %s: %v\n%s", cmd, err, out)
		}
	}
}
