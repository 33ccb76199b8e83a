//go:build peers

package archives

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

const curlProgram = "/usr/local/bin/curl-archive"

// curlScript fetches with curl(1) as a script would: a session for the list, and one
// for everything that is new. Custom commands are --request; with --list-only they
// are about one message and have no body.
const curlScript = `#!/bin/sh
# curl-archive CONFIG URL DIR MAIL keep|delete
set -eu
umask 077
config=$1 url=$2 dir=$3 mail=$4 mode=$5
touch "$dir/seen"
: >"$dir/list" # curl leaves it alone, or writes an empty line, if the list is empty
curl --config "$config" --request UIDL --output "$dir/list" --url "$url/"
tr -d '\r' <"$dir/list" >"$dir/uidl"
: >"$dir/session" >"$dir/new"
awk -v url="$url" -v mail="$mail" -v mode="$mode" -v new="$dir/new" '
  FILENAME == ARGV[1] { config = config $0 "\n"; next }
  FILENAME == ARGV[2] { seen[$0] = 1; next }
  NF < 2 { next }
  !($2 in seen) {
    printf "%surl = \"%s/%s\"\noutput = \"%s/%06d\"\nnext\n", config, url, $1, mail, $1
    print $2 >new
  }
  mode == "delete" { printf "%surl = \"%s/%s\"\nlist-only\nrequest = \"DELE\"\nnext\n", config, url, $1 }
' "$config" "$dir/seen" "$dir/uidl" >"$dir/session"
[ -s "$dir/session" ] || exit 0
sed -i '$d' "$dir/session" # the last next
curl --config "$dir/session"
cat "$dir/new" >>"$dir/seen"
`

// curl(1), 7.88.1.
var curl = &client{
	name: "curl",
	command: func(ctx context.Context, t testing.TB, dir string, profiles ...profile) *exec.Cmd {
		all := ""
		for _, p := range profiles {
			scheme, mode := "pop3s", "delete"
			text := fmt.Sprintf("user = \"%s:%s\"\ncacert = %q\nsilent\nshow-error\nfail-early\nspeed-limit = 1\nspeed-time = %d\n", p.user, curlQuote(p.password), p.ca, p.timeout)
			if p.stls() {
				scheme = "pop3"
				text += "ssl-reqd\n"
			}
			if p.keep {
				mode = "keep"
			}
			at := dir + "/" + p.name
			directory(t, at)
			configure(t, at+"/config", text)
			all += fmt.Sprintf("%s %s/config %s://%s:%d %s %s %s || failed=$?\n", curlProgram, at, scheme, p.host, p.port, at, p.mail, mode)
		}
		configure(t, dir+"/all", "failed=0\n"+all+"exit $failed\n")
		return as(ctx, "/bin/sh", dir+"/all")
	},
	distrusts: "certificate problem",
	misnamed:  "no alternative certificate subject name matches",
	rejected:  "Login denied",
	inUse:     "Login denied", // no more than that
	sent:      func(w []byte) []byte { return w },
}

// curlQuote escapes what is special within quotes of its configuration (-K).
func curlQuote(s string) string { return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) }
