package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"msgw/internal/lab/archive"
	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
	"msgw/test/labtest"
)

// A message that cannot be read, and has no other copy, is kept and steps aside after
// three sessions: it does not stand in the way of what waits beside it.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	s := newSingle(t)
	s.start()
	s.await()
	box, snd := s.mailbox(), s.sender()
	send := func(size int) string {
		res, err := snd.Send(t.Context(), sender.Envelope{From: "journal@example.org", To: []string{box.Address}}, report.New(1, size, size))
		if err != nil || len(res.IDs) != 1 {
			t.Fatalf("send: %v, %+v", err, res)
		}
		return res.IDs[0]
	}
	small, large := send(2000), send(3<<20)
	msgw := func(code int, args ...string) string {
		t.Helper()
		out, err := exec.Command(program, append(args, "--dir", s.dir)...).CombinedOutput()
		got := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			got = exit.ExitCode()
		}
		if got != code {
			t.Errorf("msgw %q: exit code %d, want %d: %s", args, got, code, out)
		}
		return string(out)
	}

	// The large one lies in a file of its own. Its first octets are spoilt, or its last ones.
	paths, err := filepath.Glob(filepath.Join(s.dir, "journal", "*", "bodies", large))
	if err != nil || len(paths) != 1 {
		t.Fatalf("the body of %s: %q, %v", large, paths, err)
	}
	flip := func(at int64) {
		t.Helper()
		f, err := os.OpenFile(paths[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := []byte{0}
		if at < 0 {
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			at += st.Size()
		}
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	session := func(listed int) {
		t.Helper()
		got, err := s.fetch(t.Context(), box, box.Password, false, false)
		var refused *archive.Error
		switch {
		case listed == 1 && (err != nil || len(got) != 1):
			t.Errorf("session without it: %d messages, %v", len(got), err)
		case listed == 2 && !(errors.As(err, &refused) && refused.Code == "SYS/TEMP"):
			t.Errorf("session with it: %v", err)
		case got[small] == nil:
			t.Error("the other message was not handed over")
		}
	}
	flip(-1)
	session(2)
	session(2)
	if out := msgw(0, "journal", "show", large); strings.Contains(out, "quarantined") {
		t.Errorf("quarantined after two sessions: %s", out)
	}
	session(2)
	session(1)
	for _, c := range []struct{ want, out string }{
		{"1 messages are quarantined: they cannot be read; the first is " + large + " of " + box.ID, msgw(1, "status")},
		{"\nquarantined ", msgw(0, "journal", "show", large)},
		{"quarantined: ", msgw(0, "journal", "list")},
	} {
		if !strings.Contains(c.out, c.want) {
			t.Errorf("%s\nlacks %q", c.out, c.want)
		}
	}

	// It is remembered, and an operator can have it listed again.
	if err := s.kill(syscall.SIGKILL); err != nil && !strings.Contains(err.Error(), "killed") {
		t.Fatal(err)
	}
	if out := msgw(0, "journal", "show", large); !strings.Contains(out, "\nquarantined ") {
		t.Errorf("of a node that does not run: %s", out)
	}
	s.start()
	s.await()
	session(1)
	if out := msgw(2, "journal", "release", small); !strings.Contains(out, "is not quarantined here") {
		t.Error(out)
	}
	msgw(0, "journal", "release", large)
	session(2)
	session(2)
	session(2)
	session(1)

	// Mended, it is found at the next look.
	flip(-1)
	if err := s.kill(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.await()
	labtest.Within(t, 30*time.Second, "it is found to be mended", func() error {
		st, err := s.admin().Status(t.Context())
		if err == nil && len(st.Trouble) > 0 {
			err = fmt.Errorf("trouble: %q", st.Trouble)
		}
		return err
	})
	got, err := s.fetch(t.Context(), box, box.Password, false, true)
	if err != nil || len(got) != 2 || string(got[large]) != string(report.New(1, 3<<20, 3<<20)) {
		t.Errorf("after it was mended: %d messages, %v", len(got), err)
	}
}
