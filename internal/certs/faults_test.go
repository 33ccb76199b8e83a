package certs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stored finds a file of certmagic's.
func (h *host) stored(suffix string) string {
	h.t.Helper()
	found := ""
	err := filepath.WalkDir(filepath.Join(h.dir, "acme", "certificates"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, suffix) {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		h.t.Fatalf("no %s: %v", suffix, err)
	}
	return found
}

// What is stored of an order may be damaged: the next order stands by itself.
func TestDamagedStorage(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{".crt", ".json", ".key"} {
		t.Run(suffix, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			s := h.use(90 * 24 * time.Hour)
			h.run()
			defer func() { h.stop() }()
			h.within("a certificate", h.public)
			for _, damage := range []func(path string) error{
				func(path string) error { return os.WriteFile(path, make([]byte, 300), 0o600) },
				os.Remove,
			} {
				if err := damage(h.stored(suffix)); err != nil {
					t.Fatal(err)
				}
				before := h.leaf("")
				if err := h.m.Renew(t.Context(), ""); err != nil {
					t.Errorf("after damage: %v", err)
				}
				if h.leaf("").Equal(before) {
					t.Error("not renewed")
				}
			}
			if f := s.Faults(); len(f) > 0 {
				t.Errorf("faults: %q", f)
			}
		})
	}
}
