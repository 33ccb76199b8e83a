//go:build peers

package tls

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// finding is one of testssl.sh's, as its flat JSON has them.
type finding struct{ ID, Severity, Finding string }

// accepted are findings above LOW that are none of the lab's doors, each with the reason.
var accepted = map[string]string{
	"engine_problem":  "testssl.sh's own OpenSSL knows no GOST",
	"cert_revocation": "the lab's own CA revokes nothing; a public CA names its CRL in what it issues",
}

// parts are what testssl(1) does for a door: protocols, ciphers and key exchange; its
// choice among ciphers; certificate, extensions and session tickets; and known attacks.
// Left out is what it rates as information only: the list of all ciphers, and what it
// takes for clients of old.
var parts = [][]string{{"-p", "-s", "-f"}, {"-P"}, {"-S"}, {"-U"}}

// differs is the part in which the doors may differ: they share the settings of TLS, but
// for session tickets.
var differs = []string{"-p", "-S"}

// testssl: testssl.sh looks at the doors of a site and finds nothing worse than LOW. It
// starts thousands of processes, so all parts are for the first door, and for the others
// if MSGW_TESTSSL is "all".
func testssl(t *testing.T, s *scene) {
	var wg sync.WaitGroup
	start := time.Now()
	places := make(chan struct{}, 6)
	for i, d := range doors(s.file.Nodes[0]) {
		look := parts
		if i > 0 && os.Getenv("MSGW_TESTSSL") != "all" {
			look = [][]string{differs}
		}
		for _, p := range look {
			wg.Go(func() {
				places <- struct{}{}
				defer func() { <-places }()
				judge(t, d, p)
			})
		}
	}
	wg.Wait()
	t.Logf("testssl.sh took %v", time.Since(start).Round(time.Second))
}

// judge runs a part of testssl.sh on a door and looks at what it found.
func judge(t *testing.T, d door, part []string) {
	name := d.name + " " + strings.Join(part, " ")
	report := filepath.Join(t.TempDir(), "report.json")
	args := append([]string{"--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--ip", d.ip(), "--add-ca", labCA,
		"--connect-timeout", "20", "--openssl-timeout", "20", "--jsonfile", report}, part...)
	if d.starttls != "" {
		args = append(args, "--starttls", d.starttls)
	}
	// Its exit code counts what it has to say, findings of every severity among it.
	start := time.Now()
	out, err := root.Command(t.Context(), "/usr/bin/testssl", append(args, d.host+":"+d.port())...).CombinedOutput()
	all, jerr := findings(report)
	if jerr != nil || len(all) < 5 {
		t.Errorf("%s: %d findings, %v, %v\n%s", name, len(all), jerr, err, out)
		return
	}
	worse := map[string]int{}
	for _, f := range all {
		worse[f.Severity]++
		switch f.Severity {
		case "OK", "INFO", "DEBUG":
		case "LOW":
			t.Logf("%s: %s, LOW: %s", name, f.ID, f.Finding)
		default:
			if accepted[f.ID] == "" {
				t.Errorf("%s: %s, %s: %s", name, f.ID, f.Severity, f.Finding)
			}
		}
	}
	t.Logf("%s: %v in %v", name, worse, time.Since(start).Round(time.Second))
}

// findings reads a report. It ends with the finding that testssl.sh was at if that was
// ended.
func findings(report string) (all []finding, err error) {
	b, err := os.ReadFile(report)
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	for _, f := range all {
		if f.ID == "scanTime" && f.Severity == "FATAL" {
			err = fmt.Errorf("it gave up: %s", f.Finding)
		}
	}
	return all, err
}
