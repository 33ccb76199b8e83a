package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/journal"
)

func TestQuarantineCounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		q, err := openQuarantine(dir, log)
		if err != nil {
			t.Fatal(err)
		}
		m := journal.Meta{ID: journal.NewID(), Mailbox: "mbx-1"}
		fail := func(errs ...error) {
			for _, err := range errs {
				q.failed(m, err)
			}
		}
		held := func(want bool) {
			t.Helper()
			if _, ok := q.holds(m.ID); ok != want {
				t.Errorf("quarantined: %v", ok)
			}
		}
		damaged := fmt.Errorf("x: %w", journal.ErrDamaged)
		// What passes is no fault of the message.
		fail(damaged, damaged, syscall.EMFILE, fmt.Errorf("read: %w", syscall.EIO), fmt.Errorf("read: %w", syscall.ETIMEDOUT), context.Canceled, fmt.Errorf("x: %w", journal.ErrClosed), journal.ErrNotFound)
		held(false)
		// A failure of long ago does not count.
		time.Sleep(failedFor + time.Second)
		fail(damaged, damaged)
		held(false)
		fail(damaged)
		held(true)
		if len(q.failures) != 0 {
			t.Errorf("%d failures are remembered", len(q.failures))
		}
		if x, _ := q.holds(m.ID); !x.Damage || x.Mailbox != "mbx-1" || !strings.Contains(x.Why, journal.ErrDamaged.Error()) {
			t.Errorf("%+v", x)
		}
		if tr := q.trouble(); len(tr) != 1 || !strings.Contains(tr[0], m.ID.String()) {
			t.Errorf("trouble: %q", tr)
		}
		if q, err = openQuarantine(dir, log); err != nil {
			t.Fatal(err)
		}
		held(true)
		if err := errors.Join(q.release(m.ID, "it is"), q.release(m.ID, "again")); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		held(false)
		// Where the disk does not read, the journal says that it is damage.
		other := m
		other.ID = journal.NewID()
		for range quarantineAfter {
			q.failed(other, fmt.Errorf("%w: %w", journal.ErrDamaged, syscall.EIO))
		}
		if x, ok := q.holds(other.ID); !ok || !x.Damage {
			t.Errorf("%+v, %v", x, ok)
		}
		// What belongs to another record cannot be mended by a copy.
		fail(errOtherRecord, errOtherRecord, errOtherRecord)
		if x, ok := q.holds(m.ID); !ok || x.Damage {
			t.Errorf("%+v, %v", x, ok)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, quarantineFile), []byte(`[{"id":"nonsense"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	var oe *OperatorError
	if _, err := openQuarantine(dir, slog.New(slog.DiscardHandler)); !errors.As(err, &oe) {
		t.Errorf("a file that does not parse: %v", err)
	}
}
