//go:build peers

package install

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"msgw/test/peers"
)

// machine is a Root with a network of its own, behind a router that is the suite's
// namespace.
type machine struct {
	root *peers.Root
	name string
}

// newMachine gives a root the network namespace, the address and the default route of
// a machine. The router has the address that ends with 254.
func newMachine(t *testing.T, root *peers.Root, name, addr string) machine {
	t.Helper()
	router := addr[:strings.LastIndex(addr, ".")] + ".254"
	for _, command := range []string{
		"ip netns add " + name,
		"ip link add " + name + " type veth peer name eth0 netns " + name,
		"ip address add " + router + "/24 dev " + name,
		"ip link set " + name + " up",
		"ip -n " + name + " address add " + addr + "/24 dev eth0",
		"ip -n " + name + " link set lo up",
		"ip -n " + name + " link set eth0 up",
		"ip -n " + name + " route add default via " + router,
	} {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	m := machine{root: root, name: name}
	root.Write(t, "/usr/local/bin/systemctl", systemctl, 0o755)
	return m
}

// systemctl plays the part of systemd, which cannot run here: it runs what the unit
// names, as the user it names, with the capability it grants, and waits for READY. The
// unit itself, with everything else in it, is booted by test/image.
const systemctl = `#!/bin/sh -eu
unit=/etc/systemd/system/msgw.service
start() {
	test -e $unit
	sed -n 's/^ConditionPathExists=//p' $unit | while read -r path; do test -e "$path"; done
	command=$(sed -n 's/^ExecStart=//p' $unit) user=$(sed -n 's/^User=//p' $unit) caps=$(sed -n 's/^AmbientCapabilities=CAP_//p' $unit | tr A-Z a-z)
	cd /
	setsid setpriv --reuid "$user" --regid "$user" --clear-groups --inh-caps "+$caps" --ambient-caps "+$caps" $command </dev/null >>/var/log/msgw.log 2>&1 &
	echo $! >/run/msgw.pid
	for _ in $(seq 300); do
		grep -q 'node started' /var/log/msgw.log && return
		kill -0 "$(cat /run/msgw.pid)" || { cat /var/log/msgw.log >&2; exit 1; }
		sleep 0.1
	done
	exit 1
}
case "$*" in
daemon-reload) test -e $unit ;;
"enable --now msgw") start ;;
"enable --now nftables") /etc/nftables.conf ;;
"restart systemd-sysctl") test -e /etc/sysctl.d/60-msgw.conf ;; # the settings are the whole machine's: test/image sees them in force
"restart msgw")
	pid=$(cat /run/msgw.pid)
	kill "$pid"
	while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
	: >/var/log/msgw.log
	start
	;;
*)
	echo "systemctl $*: not played" >&2
	exit 1
	;;
esac
`

// sh runs commands on the machine, as root, in the directory that holds the program
// and deploy, and returns what they printed.
func (m machine) sh(t *testing.T, commands string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", m.name, "chroot", m.root.Path("/"), "/bin/sh", "-eu", "-c", "cd /root/msgw\n"+commands)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", m.name, err, commands, out.Bytes())
	}
	t.Logf("%s$ %s\n%s", m.name, strings.TrimSpace(commands), out.Bytes())
	return out.String()
}

// receive copies the program and deploy to the machine.
func (m machine) receive(t *testing.T, source string) {
	t.Helper()
	to := m.root.Path("/root/msgw")
	for _, args := range [][]string{{"mkdir", "-p", to}, {"cp", peers.Program("msgw"), to}, {"cp", "-r", filepath.Join(source, "deploy"), to}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
}
