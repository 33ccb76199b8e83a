package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every row of docs/rfc.md names tests, and they exist.
func TestStandards(t *testing.T) {
	t.Parallel()
	rows := 0
	for _, section := range strings.Split(read(t, "docs", "rfc.md"), "\n## ")[1:] {
		m := regexp.MustCompile("package `([a-z0-9/]+)`").FindStringSubmatch(section)
		if m == nil {
			t.Fatalf("no package in %.40q", section)
		}
		dir := filepath.Join("..", m[1])
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", dir, files, err)
		}
		var source strings.Builder
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(b)
		}
		for line := range strings.Lines(section) {
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
			if len(cells) != 4 || !strings.HasPrefix(strings.TrimSpace(cells[0]), "RFC ") {
				continue
			}
			rows++
			if !regexp.MustCompile(`^ (yes|(partly|no): .+) $`).MatchString(cells[2]) {
				t.Errorf("%s: state %q", cells[0], cells[2])
			}
			tests := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[3], -1)
			if len(tests) == 0 {
				t.Errorf("%s: no test", cells[0])
			}
			for _, m := range tests {
				if _, err := os.Stat(filepath.Join(dir, "testdata", "dialogs", m[1]+".dialog")); err != nil && !strings.Contains(source.String(), "\nfunc "+m[1]+"(") {
					t.Errorf("%s: there is no test %s in %s", cells[0], m[1], dir)
				}
			}
		}
	}
	if rows < 45 {
		t.Errorf("%d rows", rows)
	}
}
