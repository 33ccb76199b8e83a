package smtpnode

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"testing"

	"msgw/internal/disk"
	"msgw/internal/journal"
	"msgw/internal/seal"
)

// described are the flags that function slowly gives.
const described = journal.EightBit | journal.BareLF | journal.BareCR | journal.LFDot | journal.NoFinalCRLF

// unflushed is a disk whose flushes do nothing: nobody pulls the plug here, and a
// thousand messages a second are worth more.
type unflushed struct{ disk.OS }

type unflushedFile struct{ disk.File }

func (unflushedFile) Sync() error { return nil }

func (unflushed) SyncDir(string) error { return nil }

func (u unflushed) Create(name string) (disk.File, error) {
	f, err := u.OS.Create(name)
	return unflushedFile{f}, err
}

func (u unflushed) Open(name string) (disk.File, error) {
	f, err := u.OS.Open(name)
	return unflushedFile{f}, err
}

// FuzzStored sends messages in any form through the real session to a real journal,
// breaks off anywhere, and checks that what was acknowledged is there for every
// recipient, octet by octet and described as it is, and that nothing else is.
func FuzzStored(f *testing.F) {
	f.Add([]byte("hello\r\n.\r\nworld\r\n"), uint16(0), byte(0))
	f.Add([]byte("a\n.\nb\r.\r\n..\r\n"), uint16(3), byte(1))
	f.Add([]byte("\r\n.\r\r\n.\r"), uint16(1000), byte(2))
	f.Add(bytes.Repeat([]byte(".\r\n"), 100), uint16(50), byte(7))
	f.Add([]byte("X-MS-Journal-Report:\r\n\r\na\xffb\xfe\n.\xff\xff\r\n\r"), uint16(300), byte(0x2e))
	f.Add(bytes.Repeat([]byte("0123456789abcdef"), 200), uint16(4000), byte(0xf3))
	f.Add([]byte("hello\r\nworld"), uint16(70), byte(2)) // cut within
	f.Add([]byte("hello\r\nworld"), uint16(70), byte(0xf3))
	dir := f.TempDir()
	j, err := journal.Open(dir, journal.Options{InlineMax: 2500, Reserve: 1, FS: unflushed{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { j.Close() })
	_, ids := keyOnce()
	s := New(Options{Host: "mx", Mailboxes: fakeMailboxes{}, Store: journalStore{j}, MaxIdle: 1 << 30})
	f.Fuzz(func(t *testing.T, in []byte, cut uint16, how byte) {
		if len(in) > 5000 {
			return
		}
		defer func() { // whatever came of it
			for _, m := range append(j.List("mbx-1"), j.List("mbx-2")...) {
				if err := j.Delete(m.ID); err != nil {
					t.Error(err)
				}
			}
		}()
		wire := []byte("EHLO x\r\n")
		type message struct {
			octets []byte
			end    int // in wire
		}
		var sent []message
		for i, msg := range bytes.SplitN(in, []byte{0xff}, 4) {
			if wire = append(wire, "MAIL FROM:<> BODY=8BITMIME\r\nRCPT TO:<mbx-1@z>\r\n"...); how&8 != 0 {
				wire = append(wire, "RCPT TO:<mbx-2@z>\r\n"...)
			}
			if (how+byte(i))&1 == 0 { // DATA; the message has to end a line
				msg = append(bytes.Clone(msg), "\r\n"...)
				wire = append(wire, "DATA\r\n"...)
				for _, line := range bytes.SplitAfter(msg, []byte("\r\n")) {
					if len(line) > 0 && line[0] == '.' {
						wire = append(wire, '.')
					}
					wire = append(wire, line...)
				}
				wire = append(wire, ".\r\n"...)
			} else {
				chunk := 1 + 4*int(how>>4)
				for p := msg; len(p) > 0; {
					n := min(chunk, len(p))
					wire = fmt.Appendf(wire, "BDAT %d\r\n%s", n, p[:n])
					p = p[n:]
				}
				wire = append(wire, "BDAT 0 LAST\r\n"...)
			}
			sent = append(sent, message{msg, len(wire)})
		}
		if how&2 != 0 {
			wire = wire[:min(int(cut), len(wire))]
		}
		var want [][]byte
		for _, m := range sent {
			if m.end <= len(wire) {
				want = append(want, m.octets)
			}
		}
		recipients := []string{"mbx-1", "mbx-2"}[:1+how>>3&1]
		out := play(s, wire, int(how&4))
		if acked := bytes.Count(out, []byte("2.0.0 stored ")); acked != len(want)*len(recipients) {
			t.Fatalf("acknowledged %d, expected %d for %d: %q", acked, len(want), len(recipients), out)
		}
		for _, mailbox := range []string{"mbx-1", "mbx-2"} {
			expected := want
			if !slices.Contains(recipients, mailbox) {
				expected = nil
			}
			metas := j.List(mailbox)
			if len(metas) != len(expected) {
				t.Fatalf("%s: %d stored, expected %d", mailbox, len(metas), len(expected))
			}
			for i, m := range metas {
				if !bytes.Contains(out, []byte("stored "+m.ID.String()+"\r\n")) {
					t.Fatalf("%s was not acknowledged: %q", m.ID, out)
				}
				if got := unsealed(t, j, m, ids); !bytes.Equal(got, expected[i]) {
					t.Fatalf("stored %q, expected %q", got, expected[i])
				}
				bareLFs, flags := slowly(expected[i])
				if m.Octets != int64(len(expected[i])) || m.BareLFs != bareLFs || m.Flags&described != flags {
					t.Fatalf("%q: %d octets, %d bare LFs, flags %b", expected[i], m.Octets, m.BareLFs, m.Flags)
				}
			}
		}
	})
}

// unsealed returns the octets of a message, without its trace.
func unsealed(t *testing.T, j *journal.Journal, m journal.Meta, ids []seal.Identity) []byte {
	t.Helper()
	r, err := j.Open(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, n, err := seal.Open(r, m.Sealed, ids)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(io.NewSectionReader(p, m.Trace, n-m.Trace))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
