package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"msgw/internal/admin"
	"msgw/internal/backup"
	"msgw/internal/journal"
	"msgw/raftstore"
)

const restoredBox = "mbx-2a20342e96294505a35eb5c8364eb67c"

func testConfig(t *testing.T, name string) *Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "msgw.toml")
	text := fmt.Sprintf("name = %q\nstate = %q\n[listen]\npeer = \"127.0.0.1:8451\"\n[public]\nipv4 = [\"127.0.0.1\"]\n", name, filepath.Join(filepath.Dir(path), "state"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// stopped makes a site that does not run and that holds n messages of its own, small and
// large, and n copies.
func stopped(t *testing.T, n int) *Config {
	t.Helper()
	cfg := testConfig(t, "a")
	if err := Init(cfg, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
		t.Fatal(err)
	}
	for i, dir := range []string{journalDir, shadowDir} {
		store(t, filepath.Join(cfg.State, dir), byte(i), n)
	}
	return cfg
}

// store puts n messages into the journal in dir.
func store(t *testing.T, dir string, kind byte, n int) {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		id := journal.ID{kind, 15: byte(i)}
		b := j.NewBody(id)
		b.Write(bytes.Repeat([]byte{kind, byte(i)}, 1+i*100_000))
		m := journal.Meta{ID: id, Mailbox: restoredBox, Key: "0123456789abcdef", Received: time.Unix(1e9+int64(i), 0).UTC(), Octets: 7, Flags: journal.JournalReport}
		if err := j.Commit(journal.Message{Meta: m, Body: b}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func take(t *testing.T, cfg *Config, r admin.BackupRequest) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := BackupStopped(t.Context(), cfg.State, "test", r, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestRestore(t *testing.T) {
	t.Parallel()
	from := stopped(t, 4)
	b := take(t, from, admin.BackupRequest{Journal: true})
	before, err := raftstore.LoadState(from.State)
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, "b")
	r, err := Restore(t.Context(), cfg, bytes.NewReader(b), nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := raftstore.LoadState(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	id, err := loadIdentity(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	self := s.Nodes["b"]
	switch {
	case len(s.Nodes) != 1 || self.ID != id.ID || self.ID == before.Nodes["a"].ID || self.SealTo == before.Nodes["a"].SealTo || self.Host != "b.msgw.example.com" || self.Weight != 1:
		t.Errorf("node: %+v", s.Nodes)
	case s.Revision != before.Revision+1 || s.Epoch.Number != 2 || s.Epoch.ID == before.Epoch.ID || s.Cluster != before.Cluster || s.Zone != before.Zone:
		t.Errorf("configuration: %+v\nwas: %+v", s, before)
	case !r.NewCA || s.CA.Certificate == before.CA.Certificate || len(r.Others) != 1 || r.Others[0].Name != "a" || r.Strict || r.OldHost != "":
		t.Errorf("restored: %+v", r)
	}
	if _, err := id.authority(s); err != nil {
		t.Errorf("the CA cannot issue: %v", err)
	}
	if _, err := id.peerCertificate(cfg.State, s.CA.Certificate); err != nil {
		t.Errorf("peer certificate: %v", err)
	}

	// Each message is the node's own, once, with its facts and octets.
	want := map[string]journal.Meta{}
	for _, dir := range []string{journalDir, shadowDir} {
		for m := range held(t, filepath.Join(from.State, dir)) {
			want[m.ID.String()] = m
		}
	}
	got := held(t, filepath.Join(cfg.State, journalDir))
	if len(got) != 8 || len(want) != 8 {
		t.Fatalf("%d messages, expected %d", len(got), len(want))
	}
	for m, octets := range got {
		w := want[m.ID.String()]
		if m != w || sha256.Sum256(octets) != w.SHA256 {
			t.Errorf("%+v, expected %+v", m, w)
		}
	}
	if n := len(held(t, filepath.Join(cfg.State, shadowDir))); n != 0 {
		t.Errorf("%d copies", n)
	}
}

// held reads all messages of a journal.
func held(t *testing.T, dir string) map[journal.Meta][]byte {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	got := map[journal.Meta][]byte{}
	j.All(func(m journal.Meta) bool {
		r, err := j.Open(m.ID)
		if err != nil {
			t.Error(err)
			return false
		}
		defer r.Close()
		b, err := io.ReadAll(io.NewSectionReader(r, 0, m.Sealed))
		if err != nil {
			t.Error(err)
		}
		m.Flags &= journal.JournalReport // whether it has a file of its own does not count
		got[m] = b
		return true
	})
	return got
}

// The host name is that of the configuration file, the weight that of the backup, and
// what a policy means for one site is said.
func TestRestoreSettings(t *testing.T) {
	t.Parallel()
	old := &raftstore.State{Zone: raftstore.Zone{Name: "msgw.example.com"}, Epoch: raftstore.Epoch{Number: 4, ID: "x"}, Copies: raftstore.Copies{Policy: raftstore.Strict},
		Nodes: map[string]raftstore.Node{
			"a": {Name: "a", Role: raftstore.Site, Weight: 7, Host: "old.example.net"},
			"w": {Name: "w", Role: raftstore.Witness}, "z": {Name: "z", Role: raftstore.Site, Weight: 5}},
		Mailboxes: map[string]raftstore.Mailbox{restoredBox: {ID: restoredBox, Status: raftstore.Active}},
		Invites:   map[string]raftstore.Invite{"i": {}}, Recent: []raftstore.Outcome{{}}}
	for name, want := range map[string]struct {
		weight uint32
		host   string
		others int
	}{"a": {7, "old.example.net", 2}, "w": {1, "", 2}, "new": {1, "", 3}} {
		id, err := newIdentity("c", name, raftstore.Site)
		if err != nil {
			t.Fatal(err)
		}
		r := &Restored{Backup: &backup.Contents{State: old}}
		if err := r.begin(testConfig(t, name), id); err != nil {
			t.Fatal(err)
		}
		self := r.State.Nodes[name]
		if self.Weight != want.weight || r.OldHost != want.host || self.Role != raftstore.Site || self.Host != name+".msgw.example.com" || len(r.Others) != want.others {
			t.Errorf("%s: %+v of %+v", name, self, r)
		}
		if !r.Strict || len(r.State.Invites) != 0 || r.State.Recent != nil || r.State.Epoch.Number != 5 || len(old.Nodes) != 3 {
			t.Errorf("%s: %+v", name, r.State)
		}
	}
}

// With the recovery key the CA goes on: what it signed before is still good.
func TestRestoreCA(t *testing.T) {
	t.Parallel()
	from := stopped(t, 0)
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	b := take(t, from, admin.BackupRequest{Recipients: []string{k.Recipient().String()}})
	cfg := testConfig(t, "a")
	r, err := Restore(t.Context(), cfg, bytes.NewReader(b), []backup.Identity{k})
	if err != nil {
		t.Fatal(err)
	}
	before, err := raftstore.LoadState(from.State)
	if err != nil {
		t.Fatal(err)
	}
	s, err := raftstore.LoadState(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	if r.NewCA || s.CA.Certificate != before.CA.Certificate {
		t.Error("the CA is another one")
	}
	id, err := loadIdentity(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.peerCertificate(cfg.State, before.CA.Certificate); err != nil {
		t.Error(err)
	}
}

// again reads one backup, and after it was rewound another.
type again struct {
	io.Reader
	second io.Reader
}

func (a *again) Seek(int64, int) (int64, error) {
	a.Reader = a.second
	return 0, nil
}

// hook reads a stream and calls f before its last octets.
type hook struct {
	r    io.Reader
	left int
	f    func()
}

func (h *hook) Read(p []byte) (int, error) {
	n, err := h.r.Read(p[:min(len(p), 4096)])
	if h.left -= n; h.left < 100_000 && h.f != nil {
		h.f()
		h.f = nil
	}
	return n, err
}

// Whatever goes wrong while the node is made, nothing is left of it; and until all is
// there, there is no identity, without which nothing is a node.
func TestRestoreLeavesNothing(t *testing.T) {
	t.Parallel()
	b := take(t, stopped(t, 4), admin.BackupRequest{Journal: true})
	other := take(t, stopped(t, 4), admin.BackupRequest{Journal: true})
	for name, x := range map[string]struct {
		second func(cancel func()) io.Reader
		says   string
	}{
		"cut short":      {func(func()) io.Reader { return bytes.NewReader(b[:len(b)-50_000]) }, "cut short"},
		"another backup": {func(func()) io.Reader { return bytes.NewReader(other) }, "changed while it was read"},
		"given up":       {func(cancel func()) io.Reader { return &hook{bytes.NewReader(b), len(b), cancel} }, "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cfg := testConfig(t, "b")
			r, err := Restore(ctx, cfg, &again{bytes.NewReader(b), x.second(cancel)}, nil)
			if r != nil || err == nil || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%+v, %v, expected %s", r, err, x.says)
			}
			if left, err := os.ReadDir(cfg.State); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
	t.Run("identity last", func(t *testing.T) {
		t.Parallel()
		cfg := testConfig(t, "b")
		seen := false
		look := func() {
			seen = true
			if _, err := os.Stat(filepath.Join(cfg.State, journalDir)); err != nil {
				t.Errorf("no journal while messages are stored: %v", err)
			}
			if _, err := loadIdentity(cfg.State); !errors.As(err, new(*OperatorError)) {
				t.Errorf("a node while messages are stored: %v", err)
			}
			if _, err := Restore(t.Context(), cfg, bytes.NewReader(b), nil); err == nil {
				t.Error("two at a time")
			}
		}
		if _, err := Restore(t.Context(), cfg, &again{bytes.NewReader(b), &hook{bytes.NewReader(b), len(b), look}}, nil); err != nil || !seen {
			t.Errorf("%v, looked: %v", err, seen)
		}
	})
}

func TestBackupRefuses(t *testing.T) {
	t.Parallel()
	cfg := stopped(t, 0)
	var out bytes.Buffer
	_, err := BackupStopped(t.Context(), cfg.State, "test", admin.BackupRequest{Recipients: []string{"x"}}, &out)
	if ae := (*admin.Error)(nil); !errors.As(err, &ae) || ae.Status != 400 || out.Len() > 0 {
		t.Errorf("recipient: %v, %d octets", err, out.Len())
	}
	lock, err := lockState(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, with := range []bool{false, true} {
		if _, err := BackupStopped(t.Context(), cfg.State, "test", admin.BackupRequest{Journal: with}, &out); !errors.As(err, new(*OperatorError)) || out.Len() > 0 {
			t.Errorf("of a directory in use: %v", err)
		}
	}
	if _, err := BackupStopped(t.Context(), t.TempDir(), "test", admin.BackupRequest{}, &out); !errors.As(err, new(*OperatorError)) {
		t.Errorf("of nothing: %v", err)
	}
}

// A witness gives the configuration, and says that it has neither the CA's key nor mail.
func TestBackupOfWitness(t *testing.T) {
	t.Parallel()
	cfg := stopped(t, 0)
	id, err := loadIdentity(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	id.Role = raftstore.Witness
	if err := id.save(cfg.State); err != nil {
		t.Fatal(err)
	}
	k, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	r := admin.BackupRequest{Recipients: []string{k.Recipient().String()}}
	var out bytes.Buffer
	sum, err := BackupStopped(t.Context(), cfg.State, "test", r, &out)
	if err != nil || sum.CAKey {
		t.Errorf("%+v, %v", sum, err)
	}
	c, err := backup.Read(&out, []backup.Identity{k}, nil)
	if err != nil || c.CAKey != nil {
		t.Errorf("%+v, %v", c, err)
	}
	r.Journal = true
	if _, err := BackupStopped(t.Context(), cfg.State, "test", r, &out); err == nil || !strings.Contains(err.Error(), "a witness holds no messages") {
		t.Errorf("%v", err)
	}
}

// What came in for a mailbox that was made after the configuration was taken is left out;
// what is older and has no key there is taken along: it is somebody's mail.
func TestBackupIsOfOneMoment(t *testing.T) {
	t.Parallel()
	cfg := stopped(t, 0)
	dir := filepath.Join(cfg.State, journalDir)
	store(t, dir, 0, 1)
	j, err := journal.Open(dir, journal.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b := j.NewBody(journal.ID{9})
	b.Write([]byte("sealed"))
	if err := j.Commit(journal.Message{Meta: journal.Meta{ID: journal.ID{9}, Mailbox: restoredBox, Key: "0123456789abcdef", Received: time.Now().Add(time.Hour).UTC()}, Body: b}); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := backup.Read(bytes.NewReader(take(t, cfg, admin.BackupRequest{Journal: true})), nil, func(m journal.Meta, _ bool, _ io.Reader) error {
		if m.ID != (journal.ID{}) {
			t.Errorf("%s is in it", m.ID)
		}
		return nil
	})
	if err != nil || c.Summary.Own != 1 || c.Summary.Orphans != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

// A message that was deleted between the listing and the reading leaves no trace, and a
// damaged one only its name.
func TestBackupLeavesOut(t *testing.T) {
	t.Parallel()
	cfg := stopped(t, 4)
	j, closeAll, err := openJournals(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	var metas []journal.Meta
	j.own.All(func(m journal.Meta) bool { metas = append(metas, m); return true })
	spoilt := metas[0]
	for _, m := range metas {
		if m.Sealed > spoilt.Sealed {
			spoilt = m // it has a file of its own
		}
	}
	paths, err := filepath.Glob(filepath.Join(cfg.State, journalDir, "*", "bodies", spoilt.ID.String()))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v, %v", paths, err)
	}
	f, err := os.OpenFile(paths[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), spoilt.Sealed-1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	gone := metas[0]
	if gone == spoilt {
		gone = metas[1]
	}
	if err := j.own.Delete(gone.ID); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	b, err := backup.NewWriter(&out, j.state(), backup.Options{Node: "a", Made: time.Now(), Journal: true})
	if err != nil {
		t.Fatal(err)
	}
	var sum admin.Backup
	a := &archiver{ctx: t.Context(), to: b, state: j.state(), made: time.Now(), sum: &sum, log: slog.New(slog.DiscardHandler)}
	for _, m := range metas {
		if err := a.one(j.own, m, false); err != nil {
			t.Error(err)
		}
		if err := a.one(j.own, m, true); err != nil { // the same again is not taken again
			t.Error(err)
		}
	}
	held, err := b.Close()
	if err != nil || held.Own != 2 || held.Copies != 0 {
		t.Errorf("%+v, %v", held, err)
	}
	if sum.Damaged == 0 || sum.LeftOut[0] != spoilt.ID.String() {
		t.Errorf("%+v", sum)
	}
	c, err := backup.Read(&out, nil, func(m journal.Meta, _ bool, _ io.Reader) error {
		if m.ID == gone.ID || m.ID == spoilt.ID {
			t.Errorf("%s is in it", m.ID)
		}
		return nil
	})
	if err != nil || c.Summary.Own != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}

// More than fits is refused before anything of it is stored.
func TestRestoreNeedsRoom(t *testing.T) {
	t.Parallel()
	err := fillJournal(t.Context(), t.TempDir(), 1<<60, func(messageFunc) error {
		t.Error("it was begun")
		return nil
	})
	if !errors.As(err, new(*OperatorError)) || !errors.Is(err, journal.ErrDiskFull) {
		t.Errorf("%v", err)
	}
}
