//go:build faults

package faults

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"msgw/test/labtest"
)

// diskSize of a small file system: the warning comes below 1 GiB, the refusal below
// 256 MiB.
const diskSize = 1300 << 20

// TestDiskFull fills the disk of a site from the outside: first so that it warns, then so
// that it refuses, then to the last octet. The senders go to the other site, which goes on
// without a second copy.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	var mount string
	a := newAppliance(t, plan{times: times, site: func(t *testing.T, site int, m *machine) {
		if site != 0 {
			return
		}
		mount = filepath.Join(filepath.Dir(m.dir), "disk")
		err := errors.Join(os.Mkdir(mount, 0o700), unix.Mount("disk", mount, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", diskSize)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		b, err := os.ReadFile(m.config)
		if err != nil {
			t.Fatal(err)
		}
		state := filepath.Join(mount, "state")
		b = []byte(strings.ReplaceAll(string(b), m.dir, state))
		m.dir = state
		if err := os.WriteFile(m.config, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}})
	full, other := a.sites[0], a.sites[1]
	filler := filepath.Join(mount, "filler")
	for range rounds(t, 1) {
		a.flow(40, 40)
		if low, said := full.low(); low || said {
			t.Fatalf("low %v, said %v with %d MiB free", low, said, free(t, mount)>>20)
		}

		fill(t, mount, filler, 700<<20)
		labtest.Within(t, 10*time.Second, "it warns", func() error {
			if low, said := full.low(); !low || !said {
				return fmt.Errorf("msgw_disk_low %v, in status %v", low, said)
			}
			return nil
		})
		if code := a.probe(0); code != 250 {
			t.Errorf("with 700 MiB free it answers %d", code)
		}
		a.flow(20, 20)

		fill(t, mount, filler, 200<<20)
		labtest.Within(t, 10*time.Second, "it says 452", func() error {
			if code := a.probe(0); code != 452 {
				return fmt.Errorf("it says %d", code)
			}
			return nil
		})
		t.Logf("452 with %d MiB free", free(t, mount)>>20)
		changes := other.changes()
		since := a.becomes(1, 15*time.Second, "DEGRADED")
		before := a.by(other)
		a.flow(40, 20)
		t.Logf("%s goes on in DEGRADED since %s and took %d of 40 messages: %s", other.name, since.Format("15:04:05"), a.by(other)-before, other.mustStatus().Copies.Trouble)
		if a.by(other)-before < 38 {
			t.Error("senders did not go to the other site")
		}
		if code := a.probe(0); code != 452 {
			t.Errorf("it says %d after some time", code)
		}
		// A full disk is no reason to make senders wait again and again.
		time.Sleep(3 * time.Second)
		if n := other.changes() - changes; n > 6 {
			t.Errorf("%s changed the state of its copies %d times while the disk of the other site was full", other.name, n)
		}
		s := full.mustStatus()
		t.Logf("%s with a full disk: accepting %v, %s, copies %s, trouble %q", full.name, s.Accepting, s.Reason, s.Copies.State, s.Trouble)

		fill(t, mount, filler, 0)
		if n := free(t, mount); n > 0 {
			t.Errorf("%d octets are free", n)
		}
		a.flow(30, 15)
		if !full.running() {
			t.Errorf("%s has ended", full.name)
		}
		// It can be killed and started, and still hands over what it holds.
		full.kill()
		full.start()
		time.Sleep(3 * time.Second)
		if s, err := full.status(); err != nil {
			t.Errorf("with no octet free it does not start again: %v", err)
		} else {
			t.Logf("%s, started with no octet free: accepting %v, %s, copies %s, trouble %q", full.name, s.Accepting, s.Reason, s.Copies.State, s.Trouble)
		}
		a.flow(20, 10)

		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if !full.alive() {
			full.end(syscall.SIGKILL)
			full.start()
		}
		labtest.Within(t, 30*time.Second, "it takes mail again", func() error {
			if code := a.probe(0); code != 250 {
				return fmt.Errorf("it says %d", code)
			}
			return nil
		})
		if low, said := full.low(); low || said {
			t.Errorf("low %v, said %v with %d MiB free", low, said, free(t, mount)>>20)
		}
		a.heals()
	}
	a.finish()
}

// alive returns whether the node's process is there.
func (m *machine) alive() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return false
	default:
		return m.cmd != nil
	}
}

// changes returns how often the state of a site's copies has changed.
func (m *machine) changes() int {
	m.t.Helper()
	b, err := os.ReadFile(m.log)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.Count(string(b), `msg="copies at the other site"`)
}

func free(t *testing.T, mount string) int64 {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(mount, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Bavail) * s.Bsize
}

// fill makes a file so large that no more than so many octets are left. With none it is
// written until there is no room.
func fill(t *testing.T, mount, path string, left int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for free(t, mount) > left {
		if left == 0 && free(t, mount) < 1<<20 {
			block = block[:4096]
		}
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// low returns whether a site's metrics and its status say that the disk fills up.
func (m *machine) low() (metric, status bool) {
	c := http.Client{Timeout: 5 * time.Second}
	res, err := c.Get("http://" + m.addr + ":8452/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	value := regexp.MustCompile(`(?m)^msgw_disk_low (\d)$`).FindSubmatch(b)
	if value == nil {
		m.t.Fatal("no msgw_disk_low")
	}
	s := m.mustStatus()
	return string(value[1]) == "1", slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.Contains(x, "fills up") })
}

// by returns how many messages a site has acknowledged.
func (a *appliance) by(m *machine) (n int) {
	a.led.mu.Lock()
	defer a.led.mu.Unlock()
	for _, x := range a.led.ids {
		if x.host == m.name {
			n++
		}
	}
	return n
}

// probe asks a site whether it would take a message, and returns the code that says so.
func (a *appliance) probe(site int) int {
	a.t.Helper()
	c, err := smtp.Dial(a.sites[site].addr + ":25")
	if err != nil {
		return 0
	}
	defer c.Close()
	var te *textproto.Error
	err = c.Mail("")
	if err == nil {
		err = c.Rcpt(a.boxes[0].address)
	}
	switch {
	case err == nil:
		return 250
	case errors.As(err, &te):
		return te.Code
	}
	return 0
}
