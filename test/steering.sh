#!/usr/bin/env bash
# What the DNS answers when SMTP dies while DNS lives: on both sites, and on one. It
# needs root, nft and dig, and runs a lab in a network namespace of its own.
# Usage: test/steering.sh MSGW
set -euo pipefail
msgw=$1
if [ "${STEERING_INSIDE:-}" != 1 ]; then
  STEERING_INSIDE=1 exec unshare -n "$0" "$msgw"
fi

dir=$(mktemp -d)
ip link set lo up
"$msgw" lab --dir "$dir" >"$dir.out" 2>&1 &
lab=$!
trap 'kill $lab; wait $lab || true; rm -rf "$dir" "$dir.out"' EXIT

mx() { dig +short +norec +time=2 +tries=1 -p 1053 @"$1" msgw.example.com MX | sort | tr '\n' ' '; }
both="10 msgw1.msgw.example.com. 10 msgw2.msgw.example.com. "

# expect SECONDS SERVER ANSWER: waits until SERVER answers so.
expect() {
  local got
  for _ in $(seq $(($1 * 5))); do
    got=$(mx "$2")
    [ "$got" = "$3" ] && return
    sleep 0.2
  done
  echo "1 failed: $2 answers \"$got\", expected \"$3\" within $1 s"
  "$msgw" dns --dir "$dir/msgw1" || true
  "$msgw" dns --dir "$dir/msgw2" || true
  exit 1
}

# block RULE...: refuses connections that the rule matches, until the next block.
block() {
  nft flush ruleset
  nft add table inet t
  nft 'add chain inet t in { type filter hook input priority 0; }'
  [ $# -eq 0 ] || nft add rule inet t in "$@" tcp dport 2525 reject with tcp reset
}

for _ in $(seq 300); do [ -e "$dir/lab.sock" ] && break; sleep 0.2; done
expect 10 127.0.0.11 "$both"
expect 10 127.0.0.12 "$both"

echo "SMTP dead on both sites: the configured answer stands"
block ip daddr 127.0.0.0/8
for _ in $(seq 60); do # the verdicts are in, and on every node
  "$msgw" dns --dir "$dir/msgw1" | grep -c '  down  ' | grep -qx 2 && "$msgw" dns --dir "$dir/msgw2" | grep -c '  down  ' | grep -qx 2 && break
  sleep 0.5
done
"$msgw" dns --dir "$dir/msgw1" | grep -c '  down  ' | grep -qx 2
expect 1 127.0.0.11 "$both"
expect 1 127.0.0.12 "$both"

echo "SMTP dead on site 2 only: it stands last, everywhere"
block ip daddr 127.0.0.12
expect 60 127.0.0.11 "10 msgw1.msgw.example.com. 100 msgw2.msgw.example.com. "
expect 60 127.0.0.12 "10 msgw1.msgw.example.com. 100 msgw2.msgw.example.com. "

echo "SMTP back: both again"
block
expect 90 127.0.0.11 "$both"
expect 90 127.0.0.12 "$both"
echo "steering: 8 passed, 0 failed"
