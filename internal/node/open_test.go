package node

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// What is missing or does not parse in the state directory is said, with a hint, and what
// was opened before is closed.
func TestOpenMailRefuses(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string) error{
		"no shadow":  func(dir string) error { return os.Remove(filepath.Join(dir, shadowDir)) },
		"no journal": func(dir string) error { return os.Remove(filepath.Join(dir, journalDir)) },
		"shadow.json": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "shadow.json"), []byte("{x"), 0o600)
		},
		"adoption.json": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "adoption.json"), []byte("{x"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, d := range []string{journalDir, shadowDir} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			n := &Node{cfg: &Config{State: dir}, log: slog.New(slog.DiscardHandler)}
			_, err := n.openMail()
			var oe *OperatorError
			if !errors.As(err, &oe) || oe.Hint == "" {
				t.Errorf("%v", err)
			}
		})
	}
}
