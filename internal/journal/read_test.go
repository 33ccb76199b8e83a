package journal

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
)

// The memory of a Reader serves another one once it is closed, and not before.
func TestReadersKeepTheirOctets(t *testing.T) {
	t.Parallel()
	j, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var ids []ID
	var bodies [][]byte
	for i := range 8 {
		id := NewID()
		b := j.NewBody(id)
		bodies = append(bodies, bytes.Repeat([]byte{byte(i + 1)}, 1000*(i+1)*(1+i%2*70)))
		b.Write(bodies[i])
		if err := j.Commit(Message{metaOf(id, "mbx-1"), b}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	var readers [8]*Reader
	for round := range 100 {
		i := round * 5 % 8
		if r := readers[i]; r != nil {
			got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Meta.Sealed))
			if err != nil || !bytes.Equal(got, bodies[i]) {
				t.Fatalf("round %d: message %d has other octets, %v", round, i, err)
			}
			for range 2 { // twice is not once more
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := r.ReadAt(make([]byte, 1), 0); n != 0 || !errors.Is(err, fs.ErrClosed) {
				t.Fatalf("%d octets after Close, %v", n, err)
			}
			readers[i] = nil
		}
		i = round * 3 % 8
		if readers[i] == nil {
			if readers[i], err = j.Open(ids[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, r := range readers {
		if r != nil {
			r.Close()
		}
	}
}
