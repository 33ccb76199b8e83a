package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"msgw/internal/admin"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/sender"
	"msgw/test/corpus"
)

// TestCorpus sends every message of the corpus by DATA and by BDAT in awkward
// chunks, restarts the node, changes the password, and fetches all of it octet for
// octet.
func TestCorpus(t *testing.T) {
	t.Parallel()
	s := newSingle(t)
	s.start()
	s.await()
	box := s.mailbox()
	snd := s.sender()
	want := map[string]struct {
		name, from string
		report     bool
		octets     []byte
	}{}
	for _, m := range corpus.All() {
		octets := m.Octets()
		ways := map[string]*sender.Chunks{"DATA": nil, "BDAT": {Sizes: []int{1, 4096, 7, 70_000, 3}}}
		if len(octets) < 1000 {
			ways["BDAT, one octet each"] = &sender.Chunks{Sizes: []int{1}, EmptyLast: true}
			ways["BDAT, pipelined"] = &sender.Chunks{Sizes: []int{5, 0, 64}, Pipelined: true}
		}
		if m.NeedsBDAT {
			delete(ways, "DATA")
		}
		for way, chunks := range ways {
			res, err := snd.Send(t.Context(), sender.Envelope{From: m.From, To: []string{box.Address}, Chunks: chunks}, octets)
			if err != nil {
				t.Errorf("%s by %s: %v", m.Name, way, err)
				continue
			}
			if len(res.IDs) != 1 {
				t.Fatalf("%s by %s: ids %q", m.Name, way, res.IDs)
			}
			w := want[res.IDs[0]]
			w.name, w.from, w.report, w.octets = m.Name+" by "+way, m.From, m.Report, octets
			if m.LFDot {
				w.octets = lfToCRLF(octets)
			}
			if n := len(w.octets); n > 0 && !bytes.HasSuffix(w.octets, []byte("\r\n")) {
				w.octets = append(bytes.Clone(w.octets), "\r\n"...) // POP3 has no other way
			}
			want[res.IDs[0]] = w
		}
	}
	if len(want) < 40 {
		t.Fatalf("only %d messages were sent", len(want))
	}
	noPlaintextOnDisk(t, s.dir)

	// An appliance of one site has one copy of each, and says so.
	single := 0
	if err := s.admin().Messages(t.Context(), admin.Query{Single: true}, func(admin.Message) error { single++; return nil }); err != nil || single != len(want) {
		t.Errorf("%d messages are listed as single copies, %v, expected %d", single, err, len(want))
	}

	// They survive a restart and a change of the password.
	if err := s.kill(syscall.SIGTERM); err != nil {
		t.Fatalf("stop: %v", err)
	}
	s.start()
	s.await()
	changed, err := s.admin().ChangePassword(t.Context(), box.ID, admin.ChangePassword{Old: box.Password, New: " it's \"spaced\" `out` "})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.fetch(t.Context(), box, box.Password, false, false)
	var refused *archive.Error
	if !errors.As(err, &refused) || refused.Code != "AUTH" {
		t.Errorf("the old password: %v", err)
	}
	for _, stls := range []bool{true, false} {
		got, err := s.fetch(t.Context(), changed, " it's \"spaced\" `out` ", stls, !stls)
		if err != nil {
			t.Fatalf("fetch, STLS %v: %v", stls, err)
		}
		if len(got) != len(want) {
			t.Errorf("fetched %d messages, sent %d", len(got), len(want))
		}
		for id, w := range want {
			trace, octets := corpus.CutTrace(got[id])
			if !bytes.Equal(octets, w.octets) {
				t.Errorf("%s: fetched %s, want %s", w.name, glimpse(octets), glimpse(w.octets))
			}
			if w.report != (trace == nil) || trace != nil && (trace.From != w.from || !slices.Equal(trace.To, []string{box.Address})) {
				t.Errorf("%s: fields before the message: %+v", w.name, trace)
			}
		}
	}
	if got, err := s.fetch(t.Context(), changed, " it's \"spaced\" `out` ", false, false); err != nil || len(got) != 0 {
		t.Errorf("after deleting: %d messages, %v", len(got), err)
	}
	if st, err := s.admin().Status(t.Context()); err != nil || st.Waiting.Messages != 0 || len(st.Trouble) != 0 {
		t.Errorf("after deleting: %+v, %v", st, err)
	}
}

func lfToCRLF(b []byte) []byte {
	var out []byte
	for i, c := range b {
		if c == '\n' && (i == 0 || b[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, c)
	}
	return out
}

func glimpse(b []byte) string { return fmt.Sprintf("%d octets %.80q", len(b), b) }

// noPlaintextOnDisk looks for what every report and copy of the corpus says.
func noPlaintextOnDisk(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, word := range []string{"Subject:", "Content-Type:", "X-Envelope-To", "journal.example.net"} {
			if strings.Contains(string(b), word) {
				t.Errorf("%s holds %q in clear", path, word)
			}
		}
		return nil
	})
	if err != nil || files < 5 {
		t.Errorf("%d files, %v", files, err)
	}
}
