package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// serviceManager is what started this process and waits to hear from it, by the
// protocol of sd_notify(3). The zero value is nobody.
type serviceManager struct {
	socket   string        // NOTIFY_SOCKET; empty: nobody listens
	watchdog time.Duration // it restarts a service that was silent for so long; 0: it does not
}

// findServiceManager reads what systemd left in the environment, see sd_notify(3) and
// sd_watchdog_enabled(3).
func findServiceManager(getenv func(string) string) (serviceManager, error) {
	m := serviceManager{socket: getenv("NOTIFY_SOCKET")}
	if m.socket == "" {
		return m, nil
	}
	if m.socket[0] != '/' && m.socket[0] != '@' {
		return serviceManager{}, fmt.Errorf("NOTIFY_SOCKET: %q, expected a path, or @ and an abstract name", m.socket)
	}
	period := getenv("WATCHDOG_USEC")
	if pid := getenv("WATCHDOG_PID"); period == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return m, nil
	}
	us, err := strconv.ParseInt(period, 10, 64)
	if err != nil || us <= 0 || us > int64(24*time.Hour/time.Microsecond) {
		return serviceManager{}, fmt.Errorf("WATCHDOG_USEC: %q, expected microseconds, at most a day", period)
	}
	m.watchdog = time.Duration(us) * time.Microsecond
	return m, nil
}

// tell sends the lines to the service manager.
func (m serviceManager) tell(lines ...string) error {
	if m.socket == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	defer c.Close()
	err = errors.Join(c.SetWriteDeadline(time.Now().Add(time.Second)), func() error {
		_, err := c.Write([]byte(strings.Join(lines, "\n")))
		return err
	}())
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	return nil
}

// attend tells the service manager that the node serves, how it does, and that it
// still lives, until ctx ends. It says that it lives only after describe has looked
// at the rooms: a node that hangs there falls silent and is restarted. A node that
// cannot take mail says so and lives on, as a restart gives it no better disk.
func (m serviceManager) attend(ctx context.Context, describe func() string, complain func(error)) {
	if m.socket == "" {
		return
	}
	period := 10 * time.Second
	if m.watchdog > 0 {
		period = min(period, m.watchdog/3)
	}
	t := time.NewTicker(period)
	defer t.Stop()
	lines := []string{"READY=1"}
	for {
		if err := m.tell(append(lines, "WATCHDOG=1", "STATUS="+describe())...); err != nil {
			complain(err)
		} else {
			lines = nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			if err := m.tell("STOPPING=1"); err != nil {
				complain(err)
			}
			return
		}
	}
}

// summary is one line about the node for the service manager.
func (n *Node) summary() string {
	r := n.report()
	switch {
	case n.witness:
		return "witness, votes"
	case r.Reason != "":
		return "accepts no mail: " + strings.ReplaceAll(r.Reason, "\n", " ")
	case r.Drained:
		return fmt.Sprintf("drained, accepts mail, %d waiting", r.Waiting.Messages)
	}
	return fmt.Sprintf("accepts mail, %d waiting", r.Waiting.Messages)
}
