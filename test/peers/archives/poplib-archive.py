#!/usr/bin/python3
"""poplib-archive PROFILES LONGEST: fetches with poplib what it did not fetch before.

Each message goes to a file of its own, its lines ended by CRLF. A session that cannot
be ended with QUIT is an error, and what it fetched counts as not fetched.
"""
import json
import os
import poplib
import ssl
import sys


def connect(p):
    context = ssl.create_default_context(cafile=p["ca"])
    if p["stls"]:
        drop = poplib.POP3(p["host"], p["port"], timeout=p["timeout"])
        drop.stls(context)
    else:
        drop = poplib.POP3_SSL(p["host"], p["port"], timeout=p["timeout"], context=context)
    drop.user(p["user"])
    drop.pass_(p["password"])
    return drop


def fetch(p):
    seen = set()
    if os.path.exists(p["seen"]):
        with open(p["seen"]) as f:
            seen = set(f.read().split())
    drop = connect(p)
    new = set()
    for entry in drop.uidl()[1]:
        number, uid = entry.decode().split()
        if uid not in seen:
            lines = drop.retr(number)[1]
            with open(os.path.join(p["mail"], "%06d" % int(number)), "xb") as f:
                f.writelines(line + b"\r\n" for line in lines)
            new.add(uid)
        if not p["keep"]:
            drop.dele(number)
    drop.quit()
    with open(p["seen"], "a") as f:
        f.writelines(uid + "\n" for uid in sorted(new))


if int(sys.argv[2]) > 0:
    poplib._MAXLINE = int(sys.argv[2])
failed = 0
with open(sys.argv[1]) as f:
    profiles = json.load(f)
for p in profiles:
    try:
        fetch(p)
    except (poplib.error_proto, OSError) as e:
        print(p["host"], type(e).__name__, e, file=sys.stderr)
        failed = 1
sys.exit(failed)
