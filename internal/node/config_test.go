package node

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The example must load, and must name every key there is.
func TestExampleConfig(t *testing.T) {
	t.Parallel()
	path := filepath.Join("..", "..", "deploy", "msgw.toml")
	c, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := c.PeerAddress(); err != nil || a != "192.0.2.1:8451" || c.Name != "msgw1" {
		t.Errorf("%+v, %q, %v", c, a, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var keys func(t reflect.Type) []string
	keys = func(t reflect.Type) []string {
		var ks []string
		for f := range t.Fields() {
			switch f.Type.Kind() {
			case reflect.Slice:
				if f.Type.Elem().Kind() != reflect.Struct {
					ks = append(ks, f.Tag.Get("toml")+" = ")
					continue
				}
				ks = append(ks, "# [["+f.Tag.Get("toml")+"]]")
				for _, k := range keys(f.Type.Elem()) {
					ks = append(ks, "# "+k)
				}
			case reflect.Struct:
				ks = append(ks, "["+f.Tag.Get("toml")+"]")
				ks = append(ks, keys(f.Type)...)
			default:
				ks = append(ks, f.Tag.Get("toml")+" = ")
			}
		}
		return ks
	}
	for _, k := range keys(reflect.TypeFor[Config]()) {
		if !strings.Contains("\n"+string(b), "\n"+k) {
			t.Errorf("the example does not show %q", k)
		}
	}
}

// Every fault gives one line that names the key, the value, and what was expected.
func TestBadConfig(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                                                 "name: missing",
		`name = "Msgw1"`:                                   `name: node name "Msgw1": expected 1 to 32 lower-case`,
		`name = 1`:                                         "line 1: name",
		"name = \"a\"\nnmae = \"b\"":                       "line 2: unknown key nmae",
		"name = \"a\"\n[listen]\nsmpt = \"x\"":             "line 3: unknown key listen.smpt",
		"name = \"a\"\n[listen]\nsmtp = 25":                "line 3: listen.smtp",
		"name = \"a\"\n[listen]\nsmtp = \"25\"":            `listen.smtp: "25", expected an address and a port`,
		"name = \"a\"\n[listen]\ndns = \":53\"":            `listen.dns: ":53", expected an address and a port`,
		"name = \"a\"\n[listen]\npop3 = \"\"":              `listen.pop3: "", expected`,
		"name = \"a\"\n[listen]\nhttps = \"443\"":          `listen.https: "443", expected`,
		"name = \"a\"\nstate = \"here\"":                   `state: "here", expected an absolute path`,
		"name = \"a\"\nresolver = \"9.9.9.9\"":             `resolver: "9.9.9.9", expected`,
		"name = \"a\"\n[log]\nlevel = \"loud\"":            `log.level: "loud", expected debug, info, warn or error`,
		"name = \"a\"\n[log]\nformat = \"xml\"":            `log.format: "xml", expected text or json`,
		"name = \"a\"\n[public]\nipv4 = [\"::1\"]":         `public.ipv4: "::1", expected an IPv4 address`,
		"name = \"a\"\n[public]\nipv6 = [\"x\"]":           `public.ipv6: "x", expected an IPv6 address`,
		"name = \"a\"\n[public]\nsmtp_port = 0":            "public.smtp_port: 0, expected a port number",
		"name = \"a\"\n[public]\nhost = \"mx\"":            `public.host: "mx", expected a full host name`,
		"name = \"a\"\n[public]\npeer = \"mx\"":            `public.peer: "mx", expected host:port`,
		"name = \"a\"\n[dns]\nrate = -1":                   "dns.rate: -1, expected 0 to 1000000",
		"name = \"a\"\n[dns]\nexempt = [\"192.0.2.1/24\"]": `dns.exempt: "192.0.2.1/24", expected a network`,
		`name = "a`: "line 1",
	} {
		path := filepath.Join(t.TempDir(), "msgw.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(path)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), path) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := LoadConfig("/nonexistent/msgw.toml"); err == nil || !strings.Contains(err.Error(), "/nonexistent/msgw.toml") {
		t.Error(err)
	}
}

// What the documents say of the configuration file can be put into one.
func TestDocumentedConfiguration(t *testing.T) {
	t.Parallel()
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, doc := range docs {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, box := range regexp.MustCompile("(?ms)^```toml\n(.*?)^```$").FindAllSubmatch(b, -1) {
			found++
			path := filepath.Join(t.TempDir(), "msgw.toml")
			if err := os.WriteFile(path, slices.Concat([]byte("name = \"msgw1\"\n"), box[1]), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadConfig(path); err != nil {
				t.Errorf("%s: %v\n%s", doc, err, box[1])
			}
		}
	}
	if found == 0 {
		t.Error("no box was found")
	}
}
