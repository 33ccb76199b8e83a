package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"filippo.io/age"

	"msgw/internal/ca"
	"msgw/internal/journal"
	"msgw/raftstore"
)

var ctx = context.Background()

// part is a member of a backup that was made by hand.
type part struct {
	name   string
	octets []byte
	size   int64 // that is stated, if it is another
	header tar.Header
}

// parts takes a whole backup apart.
func parts(t testing.TB, b []byte) []part {
	t.Helper()
	var all []part
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		octets, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, part{name: h.Name, octets: octets})
	}
}

// assemble makes a backup of parts, with a list that fits them in the place of the last.
func assemble(t testing.TB, all []part) []byte {
	t.Helper()
	list := ""
	for _, p := range all[:len(all)-1] {
		list += fmt.Sprintf("%x  %s\n", sha256.Sum256(p.octets), p.name)
	}
	return pack(t, append(all[:len(all)-1:len(all)-1], part{name: listName, octets: []byte(list)}))
}

func pack(t testing.TB, all []part) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, p := range all {
		h := p.header
		if h.Name, h.Size = p.name, int64(len(p.octets)); p.size > 0 {
			h.Size = p.size
		}
		if h.Typeflag == 0 {
			h.Typeflag, h.Format = tar.TypeReg, tar.FormatUSTAR
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p.octets); err != nil {
			t.Fatal(err)
		}
		if p.size > 0 {
			return out.Bytes()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// What fits its checksums and is no backup all the same is refused, and named.
func TestRefuses(t *testing.T) {
	t.Parallel()
	state, caKey := fixture()
	sound := write(t, Options{Journal: true}, mail(state)[:3])
	if _, _, err := readAll(assemble(t, parts(t, sound))); err != nil {
		t.Fatalf("taken apart and put together again: %v", err)
	}
	head := func(change func(*Head)) func(all []part) []part {
		return func(all []part) []part {
			var h Head
			if err := json.Unmarshal(all[0].octets, &h); err != nil {
				t.Fatal(err)
			}
			change(&h)
			b, err := json.Marshal(h)
			if err != nil {
				t.Fatal(err)
			}
			all[0].octets = b
			return all
		}
	}
	config := func(change func(*raftstore.State)) func(all []part) []part {
		return func(all []part) []part {
			s, err := raftstore.DecodeState(all[1].octets)
			if err != nil {
				t.Fatal(err)
			}
			change(s)
			b, err := json.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			all[1].octets = b
			return all
		}
	}
	insert := func(at int, p part) func(all []part) []part {
		return func(all []part) []part { return append(append(append([]part{}, all[:at]...), p), all[at:]...) }
	}
	otherRoot, otherKey, err := ca.New("0123456789abcdef", made)
	if err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		change func([]part) []part
		says   string
	}{
		"nothing":          {func([]part) []part { return []part{{}} }, "SHA256SUMS\" stands where backup.json should be"},
		"no configuration": {func(all []part) []part { return append(all[:1], all[2:]...) }, "stands where config.json should be"},
		"later format":     {head(func(h *Head) { h.Format = 2 }), "format 2, expected 1"},
		"unknown field":    {func(all []part) []part { all[0].octets = []byte(`{"format":1,"x":1}`); return all }, "unknown field"},
		"no object":        {func(all []part) []part { all[0].octets = []byte(`1`); return all }, "backup.json"},
		"other cluster":    {head(func(h *Head) { h.Cluster = "x" }), "not the configuration that backup.json speaks of"},
		"other node":       {head(func(h *Head) { h.Node = "b" }), "not the configuration that backup.json speaks of"},
		"other revision":   {head(func(h *Head) { h.Revision++ }), "not the configuration that backup.json speaks of"},
		"no journal":       {head(func(h *Head) { h.Journal = false }), "own/07000000-0000-0000-0000-000000000000.meta is not expected"},
		"missing key":      {head(func(h *Head) { h.CAKey = true }), "stands where ca.key should be"},
		"key in clear": {func(all []part) []part {
			return insert(2, part{name: keyName, octets: pemOf(caKey)})(head(func(h *Head) { h.CAKey = true })(all))
		}, "ca.key: in a backup that is not encrypted"},
		"no mailbox key": {config(func(s *raftstore.State) {
			changeKey(s, func(r *raftstore.Mailbox) { r.Keys[0].Recipient = "age1pq1x" })
		}), mailboxID + ": key"},
		"no secret":          {config(func(s *raftstore.State) { changeKey(s, func(r *raftstore.Mailbox) { r.Keys[0].Wrap.Ciphertext = nil }) }), "has no secret half"},
		"no active key":      {config(func(s *raftstore.State) { changeKey(s, func(r *raftstore.Mailbox) { r.Keys = nil }) }), "0 active keys"},
		"no CA":              {config(func(s *raftstore.State) { s.CA.Certificate = "x" }), "cluster CA"},
		"message twice":      {func(all []part) []part { return append(append(append([]part{}, all[:4]...), all[2:4]...), all[4:]...) }, "is not expected in it"},
		"unknown member":     {insert(2, part{name: "etc/passwd"}), `"etc/passwd" is not expected`},
		"no message id":      {insert(2, part{name: "own/../x.meta"}), "names no message"},
		"upper case":         {insert(2, part{name: "own/0700000A-0000-0000-0000-000000000000.meta"}), "names no message"},
		"facts of another":   {func(all []part) []part { all[2].octets = all[4].octets; return all }, "it speaks of message 07000000-0000-0000-0000-000000000001"},
		"no facts":           {func(all []part) []part { all[2].octets = []byte{9}; return all }, "not a form known here"},
		"long facts":         {func(all []part) []part { all[2].octets = make([]byte, 2000); return all }, "2000 octets, expected at most 1024"},
		"octets missing":     {func(all []part) []part { return append(all[:3], all[4:]...) }, "should be"},
		"octets changed":     {func(all []part) []part { all[7].octets[5] ^= 1; return all }, "message 07000000-0000-0000-0000-000000000002 is damaged"},
		"octets more":        {func(all []part) []part { all[7].octets = append(all[7].octets, 1); return all }, "of 512 octets stands where"},
		"not a plain file":   {insert(2, part{name: "own/x", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd", Format: tar.FormatUSTAR}}), "is not a plain file"},
		"extended attribute": {insert(2, part{name: "own/x", header: tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"a.b": "c"}, Format: tar.FormatPAX}}), "is not a plain file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _, err := readAll(assemble(t, x.change(parts(t, sound))))
			if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%+v, %v\nexpected: %s", c, err, x.says)
			}
		})
	}
	for name, x := range map[string]struct {
		change func([]part) []part
		says   string
	}{
		"claims much":     {func(all []part) []part { all[1].size = maxConfig + 1; return all }, "expected at most"},
		"cut, claims":     {func(all []part) []part { all[1].size = maxConfig; return all }, "cut short in config.json"},
		"list of another": {func(all []part) []part { all[8].octets[3] ^= 1; return all }, "backup.json is damaged, or its line"},
		"list too short":  {func(all []part) []part { all[8].octets = all[8].octets[:90]; return all }, "is missing in it"},
		"list too long":   {func(all []part) []part { all[8].octets = append(all[8].octets, "x"...); return all }, "names members that are missing"},
		"more":            {func(all []part) []part { return append(all, part{name: "x"}) }, "more follows behind SHA256SUMS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _, err := readAll(pack(t, x.change(parts(t, sound))))
			if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%+v, %v\nexpected: %s", c, err, x.says)
			}
		})
	}
	if err := checkKeys(state, otherKey); err == nil || !strings.Contains(err.Error(), "not that of the certificate") {
		t.Errorf("key of another CA: %v", err)
	}
	if err := checkKeys(state, []byte("x")); err == nil {
		t.Error("no key is taken for one")
	}
	if otherRoot == state.CA.Certificate {
		t.Error("two CAs are one")
	}
}

func pemOf(key []byte) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "-----BEGIN PRIVATE KEY-----\n")
	enc, _ := json.Marshal(key)
	fmt.Fprintf(&out, "%s\n-----END PRIVATE KEY-----\n", bytes.Trim(enc, `"`))
	return out.Bytes()
}

func changeKey(s *raftstore.State, change func(*raftstore.Mailbox)) {
	m := s.Mailboxes[mailboxID]
	change(&m)
	s.Mailboxes[mailboxID] = m
}

func TestWriterRefuses(t *testing.T) {
	t.Parallel()
	state, caKey := fixture()
	if _, err := NewWriter(io.Discard, state, Options{Node: "a", CAKey: caKey}); err == nil {
		t.Error("the CA's key goes into a backup in clear")
	}
	m := mail(state)[4]
	for name, x := range map[string]struct {
		journal bool
		add     func(*Writer) error
	}{
		"without journal": {false, func(w *Writer) error { return w.Message(m.meta, false, bytes.NewReader(m.sealed)) }},
		"too few octets":  {true, func(w *Writer) error { return w.Message(m.meta, false, bytes.NewReader(m.sealed[1:])) }},
		"other octets":    {true, func(w *Writer) error { return w.Message(m.meta, false, bytes.NewReader(make([]byte, len(m.sealed)))) }},
		"twice": {true, func(w *Writer) error {
			if err := w.Message(m.meta, false, bytes.NewReader(m.sealed)); err != nil || !w.Has(m.meta.ID) {
				t.Error(err)
			}
			return w.Message(m.meta, true, bytes.NewReader(m.sealed))
		}},
		"unreadable": {true, func(w *Writer) error { return w.Message(m.meta, false, failing{}) }},
		"too large": {true, func(w *Writer) error {
			big := m.meta
			big.Sealed = maxSealed + 1
			return w.Message(big, false, bytes.NewReader(m.sealed))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			w, err := NewWriter(&out, state, Options{Node: "a", Made: made, Journal: x.journal})
			if err != nil {
				t.Fatal(err)
			}
			if err := x.add(w); err == nil {
				t.Error("it was taken")
			}
			if _, err := w.Close(); err == nil {
				t.Error("the backup was finished all the same")
			}
			if _, _, err := readAll(out.Bytes()); !errors.Is(err, ErrBroken) {
				t.Errorf("what was written is read: %v", err)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk does not answer") }

// An error of whoever takes the messages is returned as it is.
func TestTakerFails(t *testing.T) {
	t.Parallel()
	state, _ := fixture()
	full := errors.New("no room")
	b := write(t, Options{Journal: true}, mail(state))
	_, err := Read(bytes.NewReader(b), nil, func(journal.Meta, bool, io.Reader) error { return full })
	if !errors.Is(err, full) || errors.Is(err, ErrBroken) {
		t.Errorf("%v", err)
	}
	// One that follows from a cut is the cut.
	_, err = Read(bytes.NewReader(b[:len(b)-5000]), nil, func(_ journal.Meta, _ bool, r io.Reader) error {
		if _, err := io.ReadAll(r); err != nil {
			return full
		}
		return nil
	})
	if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "cut short in copy/") {
		t.Errorf("cut: %v", err)
	}
}

func TestRecoveryKeys(t *testing.T) {
	t.Parallel()
	c, h := classic(t), hybrid(t)
	classicText, hybridText := c.recipient.(*age.X25519Recipient).String(), h.recipient.(*age.HybridRecipient).String()
	secret := h.identity.(*age.HybridIdentity).String()
	for _, x := range []struct {
		texts []string
		says  string
	}{
		{[]string{classicText, classicText}, ""},
		{[]string{hybridText}, ""},
		{nil, ""},
		{[]string{classicText, hybridText}, "do not go together"},
		{[]string{secret}, "this is a secret key"},
		{[]string{"ssh-ed25519 AAAA"}, `recipient "ssh-ed25519 AAAA": expected`},
		{[]string{"age1pq1xyz"}, "not a recipient of age"},
		{[]string{""}, `recipient ""`},
		{make([]string, 17), "17 of them"},
	} {
		rs, err := ParseRecipients(x.texts)
		switch {
		case x.says == "" && (err != nil || len(rs) != len(x.texts)):
			t.Errorf("%.40q: %d, %v", x.texts, len(rs), err)
		case x.says != "" && (err == nil || !strings.Contains(err.Error(), x.says)):
			t.Errorf("%.40q: %v, expected %s", x.texts, err, x.says)
		case err != nil && strings.Contains(err.Error(), secret[20:40]):
			t.Error("the secret key is shown")
		}
	}
	for text, says := range map[string]string{
		"# made today\n\n" + secret + "\n":    "",
		secret + "\r\n":                       "",
		"":                                    "no line begins",
		"# nothing\n":                         "no line begins",
		"# x\nAGE-SECRET-KEY-PQ-1XYZ\n":       "line 2 is not what age-keygen prints",
		secret[:60] + "\n":                    "line 1",
		strings.Repeat("#\n", 600_000):        "more than",
		"AGE-SECRET-KEY-1QQQ" + secret + "\n": "line 1",
	} {
		ids, err := ParseIdentities(strings.NewReader(text))
		switch {
		case says == "" && (err != nil || len(ids) != 1):
			t.Errorf("%.30q: %v", text, err)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
			t.Errorf("%.30q: %v, expected %s", text, err, says)
		case err != nil && strings.Contains(err.Error(), secret[20:40]):
			t.Error("the secret key is shown")
		}
	}
	long := ageIntro + strings.Repeat("-> X x\n\n", 10_000) + "--- x\n"
	if _, _, err := readAll([]byte(long), c.identity); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "header does not end") {
		t.Errorf("long header: %v", err)
	}
	if rs, err := ParseRecipients(repeat(hybridText, maxRecipients)); err != nil {
		t.Error(err)
	} else if _, _, err := readAll(write(t, Options{Recipients: rs}, nil), h.identity); err != nil {
		t.Errorf("as many recipients as may be: %v", err)
	}
}

func repeat(s string, n int) []string {
	var out []string
	for range n {
		out = append(out, s)
	}
	return out
}

// Every later version must read this one.
func TestVector(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/v1.backup")
	if err != nil {
		t.Fatal(err)
	}
	c, got, err := readAll(b)
	if err != nil {
		t.Fatal(err)
	}
	state := c.State
	if c.Head.Node != "a" || !c.Head.Made.Equal(made) || c.Summary != (Summary{Mailboxes: 1, Own: 2, Copies: 2, Octets: 1024}) || state.Zone.Name != "msgw.example.com" {
		t.Errorf("%+v", c)
	}
	for i, m := range mail(state)[:4] {
		if !bytes.Equal(got[i].sealed, m.sealed) || got[i].meta != m.meta || got[i].copied != m.copied {
			t.Errorf("message %d: %+v", i, got[i])
		}
	}
}

func FuzzRead(f *testing.F) {
	state, _ := fixture()
	for _, n := range []int{0, 1, 4} {
		f.Add(write(f, Options{Journal: true}, mail(state)[:n]))
	}
	k := classic(f)
	f.Add(write(f, Options{Recipients: []age.Recipient{k.recipient}}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		read := int64(0)
		c, err := Read(bytes.NewReader(b), []Identity{k.identity}, func(_ journal.Meta, _ bool, sealed io.Reader) error {
			n, err := io.Copy(io.Discard, sealed)
			read += n
			return err
		})
		switch {
		case err != nil && !errors.Is(err, ErrBroken) && !errors.Is(err, ErrIdentity):
			t.Errorf("%v", err)
		case err == nil && read != c.Summary.Octets:
			t.Errorf("%d octets, the summary says %d", read, c.Summary.Octets)
		case read > int64(len(b)):
			t.Errorf("%d octets of %d", read, len(b))
		}
	})
}
