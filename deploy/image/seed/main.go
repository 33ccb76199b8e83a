// Command msgw-seed gives an appliance its first configuration. It runs at every start,
// before the network and before msgw:
//
//	msgw-seed take        reads what was attached to the machine and checks all of it
//	msgw-seed first-boot  makes the node, once the network is being set up
//
// An appliance that has a node and a configuration stays as it is. Otherwise the first
// of these counts: a volume labelled CIDATA or cidata, credentials of systemd. Either
// the whole of it is taken or nothing, so that the next start with a better one works.
// /etc/msgw always shows the configuration that is in force; it points to a directory in
// memory until the node is made, and to /var/lib/msgw-config from then on.
//
// Each thing taken or refused is one line on the console. None shows a secret.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	a := &appliance{
		root: "", say: say, run: runMsgw, find: findVolume, credentials: os.Getenv("CREDENTIALS_DIRECTORY"),
		patience: joinPatience, pause: joinPause,
	}
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "take":
		err = a.take()
	case len(os.Args) == 2 && os.Args[1] == "first-boot":
		err = a.firstBoot(context.Background())
	default:
		err = errors.New("usage: msgw-seed take|first-boot")
	}
	if err != nil {
		say("refused: %s", oneLine(err.Error()))
		os.Exit(1)
	}
}

// Bounds on joining: site 1 may start at the same time as this machine, and a lease
// takes seconds.
const (
	joinPatience = 3 * time.Minute
	joinPause    = 5 * time.Second
)

func say(format string, args ...any) { fmt.Printf("msgw-seed: "+format+"\n", args...) }

// runMsgw runs msgw as the user msgw and returns its output.
func runMsgw(ctx context.Context, stdin string, args ...string) (string, error) {
	u, err := user.Lookup("msgw")
	if err != nil {
		return "", err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return "", err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return "", err
	}
	return run(ctx, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, "/usr/bin/msgw", stdin, args...)
}

// run runs a program to its end, at most two minutes, and returns what it printed.
func run(ctx context.Context, as *syscall.Credential, path, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
