package journal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"msgw/internal/disk/disktest"
)

// namesIn returns what is left in a directory of d.
func namesIn(d *disktest.Disk, dir string) []string {
	es, err := d.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// text makes a sealed message that differs for each id.
func text(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func metaOf(id ID, mailbox string) Meta {
	return Meta{ID: id, Mailbox: mailbox, Key: "0123456789abcdef", Received: time.Now().UTC(), Octets: 3}
}

func store(j *Journal, id ID, mailbox string, sealed []byte) error {
	b := j.NewBody(id)
	defer b.Discard()
	for p := sealed; len(p) > 0; {
		n := min(len(p), 1000)
		if _, err := b.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return j.Commit(Message{metaOf(id, mailbox), b})
}

// commitAll writes the octets of ms and commits them together.
func commitAll(j *Journal, ms []Message, sealed map[ID][]byte) error {
	for _, m := range ms {
		defer m.Body.Discard()
		for p := sealed[m.Meta.ID]; len(p) > 0; {
			n := min(len(p), 1000)
			if _, err := m.Body.Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return j.Commit(ms...)
}

func load(j *Journal, id ID) ([]byte, error) {
	r, err := j.Open(id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, r.Meta.Sealed)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read %d of %d: %w", n, len(b), err)
	}
	if sha256.Sum256(b) != r.Meta.SHA256 {
		return nil, errors.New("other SHA-256 than its meta says")
	}
	return b, nil
}

// slogTo logs warnings to b.
func slogTo(b *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// A key id that would be read back in other letters is refused: its record would be
// taken for another one's.
func TestKeyInSmallLetters(t *testing.T) {
	t.Parallel()
	j := openDir(t, t.TempDir(), Options{})
	m := metaOf(NewID(), "mbx-1")
	m.Key = "0123456789ABCDEF"
	if err := j.Commit(Message{m, j.NewBody(m.ID)}); err == nil {
		_, err := load(j, m.ID)
		t.Errorf("taken; then read with %v", err)
	}
}
