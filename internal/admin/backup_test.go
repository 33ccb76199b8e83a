package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// backupNode gives a backup as a function says.
type backupNode struct {
	Node
	give func(ctx context.Context, r BackupRequest, w io.Writer) (Backup, error)
}

func (b backupNode) Backup(ctx context.Context, r BackupRequest, w io.Writer) (Backup, error) {
	return b.give(ctx, r, w)
}

// A backup comes over the socket octet for octet, with what it holds, or with why it is
// not whole.
func TestBackup(t *testing.T) {
	t.Parallel()
	octets := bytes.Repeat([]byte("backup"), 100_000)
	sum := Backup{Node: "a", Zone: "msgw.example.com", Own: 7, Octets: 9, Damaged: 20}
	for range MaxLeftOut {
		sum.LeftOut = append(sum.LeftOut, "01234567-89ab-cdef-0123-456789abcdef")
	}
	request := BackupRequest{Recipients: []string{"age1x"}, Journal: true}
	for name, x := range map[string]struct {
		octets []byte
		err    error
		status int // of the error; 0: none
	}{
		"whole":            {octets, nil, 0},
		"refused":          {nil, Errorf(http.StatusConflict, "ask a site", "a witness holds no messages"), http.StatusConflict},
		"failed":           {nil, errors.New("the disk does not answer"), http.StatusInternalServerError},
		"broke off":        {octets[:70_000], errors.New("the disk does not answer"), http.StatusInternalServerError},
		"refused too late": {octets[:70_000], Errorf(http.StatusConflict, "", "%s", "the disk\ndoes not answer "+strings.Repeat("x", 10_000)), http.StatusInternalServerError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := serve(t, backupNode{give: func(_ context.Context, r BackupRequest, w io.Writer) (Backup, error) {
				if !reflect.DeepEqual(r, request) {
					t.Errorf("request: %+v", r)
				}
				if len(x.octets) > 0 {
					if _, err := w.Write(x.octets); err != nil {
						t.Error(err)
					}
				}
				return sum, x.err
			}})
			var got bytes.Buffer
			s, err := c.Backup(t.Context(), request, &got)
			if x.status == 0 {
				if err != nil || !bytes.Equal(got.Bytes(), octets) || !reflect.DeepEqual(s, sum) {
					t.Errorf("%d octets, %+v, %v", got.Len(), s, err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || e.Status != x.status || !strings.HasPrefix(e.Message, x.err.Error()[:10]) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A node that dies in the middle leaves no whole backup; neither does a writer that fails.
func TestBackupBreaksOff(t *testing.T) {
	t.Parallel()
	c, _ := serve(t, backupNode{give: func(_ context.Context, _ BackupRequest, w io.Writer) (Backup, error) {
		w.Write(make([]byte, 100_000))
		panic(http.ErrAbortHandler)
	}})
	if _, err := c.Backup(t.Context(), BackupRequest{}, io.Discard); err == nil {
		t.Error("a backup that broke off is whole")
	}
	gone := make(chan error, 1)
	c, _ = serve(t, backupNode{give: func(ctx context.Context, _ BackupRequest, w io.Writer) (Backup, error) {
		for {
			if _, err := w.Write(make([]byte, 100_000)); err != nil {
				gone <- err
				return Backup{}, err
			}
		}
	}})
	full := errors.New("no room")
	if _, err := c.Backup(t.Context(), BackupRequest{}, failingWriter{full}); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the node goes on writing to nobody")
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }
