//go:build peers

package archives

import (
	"context"
	_ "embed"
	"encoding/json"
	"os/exec"
	"strconv"
	"testing"
)

const poplibProgram = "/usr/local/bin/poplib-archive"

//go:embed poplib-archive.py
var poplibScript string

// poplib of Python's standard library, 3.11: https://docs.python.org/3.11/library/poplib.html
var pythonPoplib = &client{
	name: "poplib",
	command: func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd {
		// A line may be longer than poplib's 2,048 octets; that _MAXLINE is the way to say
		// so is known since there is the limit (https://bugs.python.org/issue16041).
		return poplibCommand(ctx, t, dir, 2<<20, profiles)
	},
	distrusts: "certificate verify failed",
	misnamed:  "IP address mismatch",
	rejected:  "[AUTH]",
	inUse:     "[IN-USE]",
	// retr gives lines without their ends.
	sent:    func(w []byte) []byte { return w },
	changed: map[string]difference{"citadel": bareLF, "bare-lf": bareLF, "bare-lf-only": bareLF, "binary": bareLF},
}

// stockPoplib is poplib as it comes.
var stockPoplib = &client{
	name: "poplib with its own limit",
	command: func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd {
		return poplibCommand(ctx, t, dir, 0, profiles)
	},
	sent:    pythonPoplib.sent,
	harmful: map[string]string{"long-lines": "line too long"},
}

// poplibCommand returns the command to fetch with lines of up to longest octets; 0 is
// what poplib allows by itself.
func poplibCommand(ctx context.Context, t testing.TB, dir string, longest int, profiles []profile) *exec.Cmd {
	t.Helper()
	var all []map[string]any
	for _, p := range profiles {
		all = append(all, map[string]any{"host": p.host, "port": p.port, "stls": p.stls(), "user": p.user, "password": p.password,
			"ca": p.ca, "timeout": p.timeout, "keep": p.keep, "mail": p.mail, "seen": dir + "/seen-" + p.name})
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	configure(t, dir+"/profiles.json", string(b))
	return as(ctx, "/usr/bin/python3", poplibProgram, dir+"/profiles.json", strconv.Itoa(longest))
}
