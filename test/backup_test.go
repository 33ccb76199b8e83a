package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"msgw/internal/admin"
	"msgw/internal/backup"
	"msgw/internal/journal"
	"msgw/internal/lab/report"
	"msgw/internal/node"
	"msgw/test/labtest"
)

// recoveryKey makes a key as age-keygen does and returns the file with it.
func recoveryKey(t *testing.T, dir string) (file, recipient string, identity age.Identity) {
	t.Helper()
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	file, recipient = filepath.Join(dir, "recovery.key"), id.Recipient().String()
	for path, text := range map[string]string{file: "# made for a test\n" + id.String() + "\n", filepath.Join(dir, "recovery.pub"): recipient + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file, recipient, id
}

// inBackup returns the messages of a backup by id.
func inBackup(t *testing.T, path string, ids ...age.Identity) map[string]journal.Meta {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := map[string]journal.Meta{}
	if _, err := backup.Read(f, ids, func(m journal.Meta, _ bool, _ io.Reader) error {
		got[m.ID.String()] = m
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return got
}

func run(t *testing.T, exit int, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != exit {
		t.Errorf("msgw %s: %v, expected exit code %d\n%s", strings.Join(args, " "), err, exit, out)
	}
	return string(out)
}

// restored is a machine on which a backup was restored, running.
func (p *pair) restored(name, file string, args ...string) (*single, string) {
	p.t.Helper()
	s := newMachine(p.t, name)
	out := run(p.t, 0, "", append([]string{"restore", file, "--config", s.config}, args...)...)
	s.start()
	s.await()
	return s, out
}

func (p *pair) fetchFrom(s *single, remove bool) map[string][]byte {
	p.t.Helper()
	got, err := s.fetch(p.t.Context(), admin.Credentials{ID: p.box.ID}, p.box.Password, false, remove)
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

func (p *pair) same(what string, got, want map[string][]byte) {
	p.t.Helper()
	if !slices.Equal(ids(got), ids(want)) {
		p.t.Fatalf("%s: %d messages %v, expected %d", what, len(got), ids(got), len(want))
	}
	for id := range want {
		if !bytes.Equal(got[id], want[id]) {
			p.t.Errorf("%s: %s differs: %s, expected %s", what, id, glimpse(got[id]), glimpse(want[id]))
		}
	}
}

// TestBackup makes backups of two sites while mail comes and goes, and restores them at
// other addresses.
func TestBackup(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for site := range 2 {
		p.becomes(site, "SYNC")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	p.msgw(0, 0, "node", "weight", "msgw1", "3")
	gone := p.msgw(0, 0, "mailbox", "create", "--description", "deleted")
	goneID := regexp.MustCompile(`mbx-[0-9a-f]{32}`).FindString(gone)
	p.msgw(0, 0, "mailbox", "suspend", goneID)
	p.msgw(0, 0, "mailbox", "delete", goneID)

	settled := map[string][]byte{}
	for i, size := range []int{2_000, 300_000, 3 << 20, 40_000} {
		msg := report.New(3, i, size)
		settled[p.mustGive(i%2, msg)] = msg
	}
	p.both(settled)

	// Mail comes in at both sites and is fetched from one, while backups are made.
	flow := p.flow()
	for i := range 5 {
		file := at(fmt.Sprintf("running%d", i))
		before := flow.taken()
		out := p.msgw(0, 0, "backup", "--journal", "-o", file)
		if !strings.Contains(out, "3 mailboxes") || !strings.Contains(out, "not encrypted") {
			t.Errorf("backup: %s", out)
		}
		if fi, err := os.Stat(file); err != nil || fi.Mode() != 0o600 {
			t.Errorf("backup: %v, %v", fi, err)
		}
		if out := run(t, 0, "", "verify", file); !strings.Contains(out, "whole: every checksum fits") {
			t.Errorf("verify: %s", out)
		}
		got := inBackup(t, file)
		for id := range settled {
			if _, ok := got[id]; !ok {
				t.Errorf("backup %d: %s is missing", i, id)
			}
		}
		for _, id := range before {
			if _, ok := got[id]; !ok {
				t.Errorf("backup %d: %s, which msgw1 had taken before, is missing", i, id)
			}
		}
	}
	fetched, kept := flow.end()
	if fetched == 0 || len(kept) == 0 {
		t.Fatalf("nothing moved while the backups were made: %d fetched, %d kept", fetched, len(kept))
	}
	t.Logf("%d messages came in, %d were fetched meanwhile", len(kept)+fetched, fetched)
	want := maps.Clone(settled)
	maps.Copy(want, kept)
	p.both(want)

	// Of both sites, encrypted or not, by file and by pipe; of one that does not run.
	key, recipient, identity := recoveryKey(t, dir)
	p.msgw(0, 0, "backup", "--journal", "--output", at("plain"))
	if out := p.msgw(1, 0, "backup", "--journal", "--output", at("encrypted"), "--recipient", recipient); !strings.Contains(out, "encrypted to age1pq1") || !strings.Contains(out, "with the CA's key") {
		t.Errorf("encrypted: %s", out)
	}
	if out := p.msgw(0, 2, "backup", "--output", at("plain")); !strings.Contains(out, "exists already") {
		t.Errorf("over an older one: %s", out)
	}
	cmd := p.Command("backup", "--dir", p.nodes[0].Dir)
	piped, err := cmd.Output()
	if err != nil || os.WriteFile(at("piped"), piped, 0o600) != nil {
		t.Errorf("to standard output: %v", err)
	}
	if out := run(t, 0, "", "verify", at("piped")); !strings.Contains(out, "messages       not in it") {
		t.Errorf("piped: %s", out)
	}
	p.lab("stop", "msgw2")
	p.msgw(1, 0, "backup", "--journal", "--output", at("stopped"), "-r", recipient)
	for _, name := range []string{"plain", "encrypted", "stopped"} {
		if got := slices.Sorted(maps.Keys(inBackup(t, at(name), identity))); !slices.Equal(got, ids(want)) {
			t.Errorf("%s holds %v, expected %v", name, got, ids(want))
		}
	}
	p.damaged(at("without a damaged one"), want)
	p.hidden(at("encrypted"), at("plain"))
	p.refused(at("plain"), at("encrypted"), key)

	// A plain one, at another place and under another name.
	p.lab("stop", "msgw1")
	oldCA, err := os.ReadFile(p.File().CA)
	if err != nil {
		t.Fatal(err)
	}
	s, out := p.restored("a", at("plain"))
	for _, says := range []string{"CA: a new one", "not taken over: msgw1 (site), msgw2 (site)", fmt.Sprintf("3 mailboxes, %d messages, epoch 2", len(want))} {
		if !strings.Contains(out, says) {
			t.Errorf("restore does not say %q:\n%s", says, out)
		}
	}
	p.same("restored from the plain one", p.fetchFrom(s, false), want)
	if pem := run(t, 0, "", "ca", "--dir", s.dir); bytes.Contains(oldCA, []byte(pem)) {
		t.Error("the CA is the old one, and nobody has its key")
	}
	if out := run(t, 0, "", "mailbox", "list", "--all", "--dir", s.dir); strings.Count(out, "mbx-") != 3 || !strings.Contains(out, "retired") {
		t.Errorf("mailboxes: %s", out)
	}
	run(t, 2, "", "restore", at("plain"), "--config", s.config)
	p.secondSite(s, want)

	// An encrypted one, as the node that it was.
	s, out = p.restored("msgw1", at("encrypted"), "--identity", key)
	if strings.Contains(out, "CA: ") || !strings.Contains(out, "not taken over: msgw2 (site);") {
		t.Errorf("restore: %s", out)
	}
	if pem := run(t, 0, "", "ca", "--dir", s.dir); !bytes.Contains(oldCA, []byte(strings.TrimSpace(pem))) {
		t.Error("the CA is another one")
	}
	st, err := s.admin().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Epoch != 2 || st.MX[0].Weight != 3 || st.Waiting.Messages != len(want) {
		t.Errorf("restored: %+v", st)
	}
	if _, before, _ := strings.Cut(run(t, 0, "", "verify", at("encrypted"), "-i", key, "--json"), `"revision": `); !strings.HasPrefix(before, fmt.Sprint(st.Revision-1)) {
		t.Errorf("revision %d, the backup says %.6s", st.Revision, before)
	}
	p.same("restored from the encrypted one", p.fetchFrom(s, true), want)
	if left := p.fetchFrom(s, false); len(left) > 0 {
		t.Errorf("fetched and deleted, and yet there: %v", ids(left))
	}
	s.kill(os.Interrupt)
	s.start()
	s.await()
	if left := p.fetchFrom(s, false); len(left) > 0 {
		t.Errorf("back after a restart: %v", ids(left))
	}
	run(t, 0, "", "mailbox", "create", "--dir", s.dir)
}

// both waits until both sites list messages, and no others of their mailbox.
func (p *pair) both(want map[string][]byte) {
	p.t.Helper()
	labtest.Within(p.t, 20*time.Second, "both sites hold the same", func() error {
		for site := range 2 {
			out := p.msgw(site, 0, "journal", "list", "--mailbox", p.box.ID)
			for id := range want {
				if !strings.Contains(out, id) || strings.Count(out, p.box.ID) != len(want) {
					return fmt.Errorf("%s, expected %d:\n%s", p.nodes[site].Name, len(want), out)
				}
			}
		}
		return nil
	})
}

// damaged makes a backup of msgw1, whose other site is down, while one of its messages is
// damaged.
func (p *pair) damaged(file string, want map[string][]byte) {
	p.t.Helper()
	large := ""
	for id, msg := range want {
		if len(msg) == 3<<20 {
			large = id
		}
	}
	p.rot(0, large)
	out := p.msgw(0, 1, "backup", "--journal", "--output", file)
	p.rot(0, large) // as it was
	if !strings.Contains(out, "1 damaged messages are left out: "+large) {
		p.t.Errorf("backup with a damaged message: %s", out)
	}
	got := inBackup(p.t, file)
	if _, ok := got[large]; ok || len(got) != len(want)-1 {
		p.t.Errorf("%d of %d messages are in a backup without the damaged one, which is in it: %v", len(got), len(want), ok)
	}
}

// secondSite lets another node join a restored one.
func (p *pair) secondSite(s *single, want map[string][]byte) {
	p.t.Helper()
	second := newMachine(p.t, "b")
	token := run(p.t, 0, "", "invite", "--dir", s.dir)
	token = regexp.MustCompile(`msgw-join-\S+`).FindString(token)
	run(p.t, 0, "", "join", token, "--config", second.config)
	second.start()
	labtest.Within(p.t, 60*time.Second, "a second site has copies of all", func() error {
		st, err := second.admin().Status(p.t.Context())
		if err == nil && (st.Copies.State != "SYNC" || st.Copies.Held != len(want)) {
			err = fmt.Errorf("%s, %d held", st.Copies.State, st.Copies.Held)
		}
		return err
	})
	for _, x := range []*single{second, s} {
		if err := x.kill(os.Interrupt); err != nil {
			p.t.Error(err)
		}
	}
}

// hidden makes sure that neither backup shows mail, and the encrypted one nothing.
func (p *pair) hidden(encrypted, plain string) {
	p.t.Helper()
	for _, path := range []string{encrypted, plain} {
		b, err := os.ReadFile(path)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, text := range []string{"X-MS-Journal-Report", "Subject:", p.box.Password} {
			if bytes.Contains(b, []byte(text)) {
				p.t.Errorf("%s shows %q", path, text)
			}
		}
		if shown := bytes.Contains(b, []byte(p.box.ID)); shown != (path == plain) {
			p.t.Errorf("%s shows a mailbox: %v", path, shown)
		}
	}
}

// refused tries what must not be restored, nor called whole.
func (p *pair) refused(plain, encrypted, key string) {
	t := p.t
	t.Helper()
	whole, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	spoilt := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tampered := bytes.Clone(whole)
	tampered[bytes.LastIndex(tampered, []byte("age-encryption.org/v1\n"))+100] ^= 1
	sealed, err := os.ReadFile(encrypted)
	if err != nil {
		t.Fatal(err)
	}
	other, _, _ := recoveryKey(t, dir)
	m := newMachine(t, "a")
	for _, x := range []struct {
		exit int
		args []string
		says string
	}{
		{1, []string{spoilt("tampered", tampered)}, "is damaged"},
		{1, []string{spoilt("cut", whole[:len(whole)-2000])}, "cut short"},
		{1, []string{spoilt("empty", nil)}, "cut short"},
		{1, []string{spoilt("cut, encrypted", sealed[:len(sealed)-1]), "-i", key}, "not a whole backup"},
		{1, []string{spoilt("other", []byte("no backup at all"))}, "not a whole backup"},
		{2, []string{encrypted}, "hint: name the file with the recovery key"},
		{2, []string{encrypted, "-i", other}, "encrypted to other recipients"},
		{2, []string{encrypted, "-i", m.config}, "is not what age-keygen prints"},
		{2, []string{filepath.Join(dir, "nothing")}, "no such file"},
		{2, []string{dir}, "not a regular file"},
	} {
		for _, command := range []string{"verify", "restore"} {
			args := append([]string{command}, x.args...)
			if command == "restore" {
				args = append(args, "--config", m.config)
			}
			if out := run(t, x.exit, "", args...); !strings.Contains(out, x.says) || strings.Count(out, "\n") > 2 {
				t.Errorf("%v: %s\nexpected: %s", args, out, x.says)
			}
		}
	}
	if left, err := os.ReadDir(m.dir); len(left) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v, %v", left, err)
	}
	secret, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if out := run(t, 0, string(secret), "verify", encrypted, "--identity", "-"); !strings.Contains(out, "CA's key       yes") {
		t.Errorf("identity on standard input: %s", out)
	}

	// Over nodes: msgw1 runs, msgw2 does not.
	for site, says := range []string{"is in use: a backup is not restored over a live node", "holds a node: a backup is not restored over it"} {
		before := tree(t, p.nodes[1].Dir)
		if out := run(t, 2, "", "restore", plain, "--config", filepath.Join(p.Dir, p.nodes[site].Name+".toml")); !strings.Contains(out, says) || !strings.Contains(out, "hint: ") {
			t.Errorf("restore over %s: %s", p.nodes[site].Name, out)
		}
		if after := tree(t, p.nodes[1].Dir); !slices.Equal(before, after) {
			t.Errorf("restore over a node changed %v to %v", before, after)
		}
	}
}

func tree(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	if err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			all = append(all, fmt.Sprintf("%s %d %v", path, fi.Size(), fi.ModTime()))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// flow is mail that comes in at both sites for the first mailbox, and for the second one
// at msgw1, where it is fetched and deleted.
type flow struct {
	p    *pair
	stop chan struct{}
	all  sync.WaitGroup

	mu      sync.Mutex
	kept    map[string][]byte
	atFirst []string
	fetched int
}

func (p *pair) flow() *flow {
	f := &flow{p: p, stop: make(chan struct{}), kept: map[string][]byte{}}
	second := *p
	second.box = p.File().Mailboxes[1]
	loop := func(what string, do func(i int) error) {
		f.all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-f.stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				if err := do(i); err != nil {
					p.t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	for site := range 2 {
		loop("mail to keep", func(i int) error {
			if i >= 60 {
				return nil
			}
			msg := report.New(uint64(10+site), i, 3_000+i%5*100_000)
			id, err := p.give(site, msg)
			f.mu.Lock()
			defer f.mu.Unlock()
			if err == nil {
				f.kept[id] = msg
				if site == 0 {
					f.atFirst = append(f.atFirst, id)
				}
			}
			return err
		})
	}
	loop("mail to fetch", func(i int) error {
		_, err := second.give(0, report.New(20, i, 2_000+i%4*100_000))
		return err
	})
	loop("archive", func(int) error {
		got, err := second.fetch(0, -1)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.fetched += len(got)
		return err
	})
	return f
}

// taken returns the messages that msgw1 has taken to keep so far.
func (f *flow) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.atFirst)
}

// end lets the flow end, and empties the second mailbox.
func (f *flow) end() (fetched int, kept map[string][]byte) {
	f.p.t.Helper()
	close(f.stop)
	f.all.Wait()
	second := *f.p
	second.box = f.p.File().Mailboxes[1]
	got, err := second.fetch(0, -1)
	if err != nil {
		f.p.t.Fatal(err)
	}
	labtest.Within(f.p.t, 20*time.Second, "the copies of what was fetched are gone", func() error {
		out, err := f.p.Msgw("journal", "list", "--mailbox", second.box.ID, "--dir", f.p.nodes[1].Dir)
		if err == nil && strings.Contains(out, second.box.ID) {
			err = errors.New(out)
		}
		return err
	})
	return f.fetched + len(got), f.kept
}

// TestBackupDocument types what docs/backup.md tells to type and compares what is said.
func TestBackupDocument(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for site := range 2 {
		p.becomes(site, "SYNC")
	}
	for i := range 5 {
		p.mustGive(i%2, report.New(5, i, 40_000))
	}
	dir := t.TempDir()
	recoveryKey(t, dir)
	m := newMachine(t, "msgw1")
	text := read(t, "docs", "backup.md")
	ran := 0
	for _, where := range []string{"operator", "machine"} {
		state := p.nodes[0].Dir
		if where == "machine" {
			state = m.dir
		}
		paths := strings.NewReplacer("/root/", dir+"/", "/mnt/", dir+"/mnt-", "/var/lib/msgw", state, "/etc/msgw/msgw.toml", m.config)
		for _, box := range blocks(text, "sh "+where) {
			for _, step := range strings.Split(box, "$ ")[1:] {
				ran++
				line, want, _ := strings.Cut(step, "\n")
				typed := program + strings.TrimPrefix(paths.Replace(line), "msgw")
				switch {
				case strings.HasPrefix(line, "msgw backup "):
					typed += " --dir " + state
				case strings.HasPrefix(line, "msgw restore "):
					typed += " --config " + m.config
				}
				out, err := exec.Command("sh", "-c", typed).CombinedOutput()
				if wrong := strings.HasPrefix(want, "msgw: "); wrong != (err != nil) {
					t.Errorf("%s: %v", line, err)
				}
				if got, want := plainText(string(out)), plainText(paths.Replace(want)); got != want {
					t.Errorf("%s\nsays\n%s\nand not, as docs/backup.md has it,\n%s", line, got, want)
				}
			}
		}
	}
	if ran != 7 {
		t.Errorf("%d commands were run, expected 7", ran)
	}
	if _, err := node.LoadConfig(m.config); err != nil {
		t.Error(err)
	}
}

// plainText takes out what differs from run to run.
func plainText(s string) string {
	for _, x := range [][2]string{{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "TIME"}, {`\d+ [KM]?i?B sealed`, "SIZE sealed"}, {`age1pq1\w*\.\.\.`, "age1pq1..."}} {
		s = regexp.MustCompile(x[0]).ReplaceAllString(s, x[1])
	}
	return s
}
