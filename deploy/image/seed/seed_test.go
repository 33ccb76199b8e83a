package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseCommand(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"init --zone msgw.example.com\n":              "init --zone msgw.example.com|",
		"\n  init   --zone a.b --contact x@a.b\r\n\n": "init --zone a.b --contact x@a.b|",
		"join msgw-join-1-abc\n":                      "join -|msgw-join-1-abc",
		"":                                            "0 lines",
		"init --zone a\njoin b":                       "2 lines",
		"init --config /tmp/x":                        "--config is not",
		"init --zone a --config=/tmp/x":               "--config is not",
		"join":                                        "not followed by one token",
		"join --config /x":                            "not followed by one token",
		"join --help":                                 "not followed by one token",
		"serve":                                       "expected init",
		"msgw init --zone a":                          "expected init",
		"sh -c reboot":                                "expected init",
		"initx":                                       "expected init",
		"join msgw-join-1-secretsecret msgw-join-1-second": "not followed by one token",
	} {
		c, err := parseCommand(text)
		got := strings.Join(c.args, " ") + "|" + c.stdin
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%q: %q, expected %q", text, got, want)
		}
		if err != nil && strings.Contains(got, "secret") {
			t.Errorf("%q shows the token", got)
		}
	}
}

func TestCheckHash(t *testing.T) {
	t.Parallel()
	for hash, ok := range map[string]bool{
		"$6$cSWNe1INbyRZwKbl$zPCDYo4BBoHFqHx1IQlsqrjRz8kTP6N0qVXnrvhQdeVyx3NkYb9zeuGbtGSEHhkKGSCSmdUtcBXlVHaRbQGxu/": true,
		"$y$j9T$1lZ6WpUmpJ0Qw2.uEoPUq.$5nHG7mZ5sJc8rGDGhp1UCbpfDhLxA8M1Y5yHn3v7nR/":                                  true,
		"$2b$12$abcdefghijklmnopqrstuuKqx0fSAmnUPnTmQrV0fVnDpBjT1hX7O":                                               true,
		"secret":                         false,
		"":                               false,
		"$6$":                            false,
		"$1$abcdefgh$abcdefghijklmnopqr": false, // MD5
		"$6$salt$abcdefghijk:0:0:::::\nroot2:x:0:0::/root:/bin/sh": false,
		"*":  false,
		"!!": false,
		"$6$cSWNe1INbyRZwKbl$abcdefghijklmnop qrst": false,
	} {
		if err := checkHash(hash); (err == nil) != ok {
			t.Errorf("%q: %v", hash, err)
		} else if err != nil && len(hash) > 3 && strings.Contains(err.Error(), hash) {
			t.Errorf("%v shows what was given", err)
		}
	}
}

func TestCheckNetwork(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"[Match]\nName=en*\n[Network]\nAddress=192.0.2.1/24\n": "",
		"# a comment\n; another\n\n[Match]\nMACAddress=x\r\n":  "",
		"":                                  "no [Match]",
		"[Network]\nAddress=192.0.2.1/24\n": "no [Match]",
		"[Match]\n[Network]\nDHCP=yes\n":    "no [Match]",
		"network:\n  version: 2\n":          "line 1",
		"Name=en*\n[Match]\n":               "line 1",
		"[Match]\nName=en*\n[Network]\nAddress 192.0.2.1\n": "line 4",
	} {
		err := checkNetwork(text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, expected %q", text, err, want)
		}
	}
}

func TestPeerRules(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"192.0.2.2\n198.51.100.0/24 # site 2\n\n": "add element inet msgw peers4 { 192.0.2.2/32, 198.51.100.0/24 }\n",
		"2001:db8::2":                           "add element inet msgw peers6 { 2001:db8::2/128 }\n",
		"192.0.2.2\n2001:db8::/32\n192.0.2.2\n": "add element inet msgw peers4 { 192.0.2.2/32 }\nadd element inet msgw peers6 { 2001:db8::/32 }\n",
		"198.51.100.7\n198.51.100.0/24\n":       "add element inet msgw peers4 { 198.51.100.0/24 }\n",
		"":                                      "",
		"msgw2.example.com":                     "line 1",
		"0.0.0.0/0":                             "line 1",
		"192.0.2.2\n::/0":                       "line 2",
		"192.0.2.2 } ; add rule inet msgw input accept ; set x {": "line 1",
		"fe80::1%eth0":     "line 1",
		"::ffff:192.0.2.1": "line 1",
	} {
		got, err := peerRules(text)
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || err != nil && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("%q: %q, expected %q", text, got, want)
		}
	}
}

func TestReadSeed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"msgw.toml": "a", "msgw.first-boot": "b", "first-boot": "c", "user-data": "d"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := readSeed(dir, onVolume)
	if err != nil || len(s) != 2 || s[configFile] != "a" || s[commandFile] != "c" || s.names() != "msgw.toml, first-boot" {
		t.Errorf("volume: %v %v", s, err)
	}
	s, err = readSeed(dir, asCredential)
	if err != nil || len(s) != 2 || s[configFile] != "a" || s[commandFile] != "b" {
		t.Errorf("credentials: %v %v", s, err)
	}
	if err := os.Truncate(filepath.Join(dir, "msgw.toml"), maxSeedFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := readSeed(dir, onVolume); err == nil {
		t.Error("a file larger than the limit was read")
	}
}
