package node

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func environment(pairs ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestFindServiceManager(t *testing.T) {
	t.Parallel()
	pid := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		env      []string
		watchdog time.Duration
		socket   string
		bad      string
	}{
		{env: nil},
		{env: []string{"WATCHDOG_USEC", "nonsense"}}, // nobody to tell
		{env: []string{"NOTIFY_SOCKET", "/run/n"}, socket: "/run/n"},
		{env: []string{"NOTIFY_SOCKET", "@n", "WATCHDOG_USEC", "30000000"}, socket: "@n", watchdog: 30 * time.Second},
		{env: []string{"NOTIFY_SOCKET", "@n", "WATCHDOG_USEC", "30000000", "WATCHDOG_PID", pid}, socket: "@n", watchdog: 30 * time.Second},
		{env: []string{"NOTIFY_SOCKET", "@n", "WATCHDOG_USEC", "30000000", "WATCHDOG_PID", "1"}, socket: "@n"},
		{env: []string{"NOTIFY_SOCKET", "run/n"}, bad: "NOTIFY_SOCKET"},
		{env: []string{"NOTIFY_SOCKET", "@n", "WATCHDOG_USEC", "-1"}, bad: "WATCHDOG_USEC"},
		{env: []string{"NOTIFY_SOCKET", "@n", "WATCHDOG_USEC", "9223372036854775807"}, bad: "WATCHDOG_USEC"},
	} {
		m, err := findServiceManager(environment(c.env...))
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%q: error %v, expected one about %s", c.env, err, c.bad)
			}
			continue
		}
		if err != nil || m.socket != c.socket || m.watchdog != c.watchdog {
			t.Errorf("%q: %+v, %v", c.env, m, err)
		}
	}
}

func TestAttend(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read := func() string {
		l.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 4096)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	ctx, cancel := context.WithCancel(t.Context())
	hang := make(chan struct{})
	looks := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		serviceManager{socket: path, watchdog: 30 * time.Millisecond}.attend(ctx, func() string {
			if looks++; looks == 3 {
				<-hang
			}
			return "accepts mail, 3 waiting"
		}, func(err error) { t.Error(err) })
	}()
	if got := read(); got != "READY=1\nWATCHDOG=1\nSTATUS=accepts mail, 3 waiting" {
		t.Errorf("first: %q", got)
	}
	if got := read(); got != "WATCHDOG=1\nSTATUS=accepts mail, 3 waiting" {
		t.Errorf("then: %q", got)
	}
	l.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := l.Read(make([]byte, 1)); err == nil {
		t.Errorf("a node that hangs says that it lives: %d octets", n)
	}
	close(hang)
	read()
	cancel()
	last := ""
	for last != "STOPPING=1" {
		last = read()
	}
	<-done
}
