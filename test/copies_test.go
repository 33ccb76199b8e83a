package test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/report"
	"msgw/internal/node"
	"msgw/test/labtest"
)

// pair is a lab of two sites whose mail is given to the one or the other.
type pair struct {
	*labtest.Lab
	t     *testing.T
	nodes []lab.NodeRow
	box   lab.Mailbox
}

func newPair(t *testing.T, args ...string) *pair {
	l := labtest.Start(t, program, t.TempDir(), append([]string{"--net", loopback(), "--mailboxes", "2"}, args...)...)
	f := l.File()
	return &pair{l, t, f.Nodes, f.Mailboxes[0]}
}

// give sends a message to a site and returns its id.
func (p *pair) give(site int, msg []byte, to ...string) (string, error) {
	if len(to) == 0 {
		to = []string{p.box.Address}
	}
	c, err := smtp.Dial(p.nodes[site].SMTP)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.Mail(""); err != nil {
		return "", err
	}
	for _, a := range to {
		if err := c.Rcpt(a); err != nil {
			return "", err
		}
	}
	// net/smtp hides the answer to the message, which names it.
	if _, err := c.Text.Cmd("DATA"); err != nil {
		return "", err
	}
	if _, _, err := c.Text.ReadResponse(354); err != nil {
		return "", err
	}
	w := c.Text.DotWriter()
	w.Write(msg)
	if err := w.Close(); err != nil {
		return "", err
	}
	_, answer, err := c.Text.ReadResponse(250)
	if err != nil {
		return "", err
	}
	return regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`).FindString(answer), nil
}

func (p *pair) mustGive(site int, msg []byte) string {
	p.t.Helper()
	id, err := p.give(site, msg)
	if err != nil || id == "" {
		p.t.Fatalf("message to %s: %q, %v", p.nodes[site].Name, id, err)
	}
	return id
}

// fetch runs a POP3 session at a site; n of the messages are deleted, all if n < 0.
func (p *pair) fetch(site int, n int) (map[string][]byte, error) {
	pem, err := os.ReadFile(p.File().CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	got, enough := map[string][]byte{}, errors.New("enough")
	_, err = archive.Fetch(p.t.Context(), archive.Config{Address: p.nodes[site].POP3S, User: p.box.ID, Password: p.box.Password,
		TLS: &tls.Config{RootCAs: roots, ServerName: p.nodes[site].Host}}, n != 0, func(id string, msg []byte) error {
		if n > 0 && len(got) == n {
			return enough
		}
		got[id] = bytes.Clone(msg)
		return nil
	})
	if errors.Is(err, enough) {
		err = nil
	}
	return got, err
}

func (p *pair) tryStatus(site int) (admin.Status, error) {
	return admin.NewClient(p.nodes[site].Dir, node.SocketFile).Status(p.t.Context())
}

func (p *pair) status(site int) admin.Status {
	p.t.Helper()
	s, err := p.tryStatus(site)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

func (p *pair) becomes(site int, state string) {
	p.t.Helper()
	labtest.Within(p.t, 30*time.Second, p.nodes[site].Name+" is "+state, func() error {
		s, err := p.tryStatus(site)
		if err == nil && s.Copies.State != state {
			err = fmt.Errorf("it is %s, %d single", s.Copies.State, s.Copies.Single)
		}
		return err
	})
}

// msgw runs an operator's command at a site and returns what it printed.
func (p *pair) msgw(site, exit int, args ...string) string {
	p.t.Helper()
	out, err := p.Msgw(append(args, "--dir", p.nodes[site].Dir)...)
	if exitCodeOf(err) != exit {
		p.t.Errorf("msgw %s: %v, expected exit code %d\n%s", strings.Join(args, " "), err, exit, out)
	}
	return out
}

func (p *pair) lab(args ...string) {
	p.t.Helper()
	if out, err := p.Msgw(append(append([]string{"lab"}, args...), "--dir", p.Dir)...); err != nil {
		p.t.Fatalf("lab %v: %v\n%s", args, err, out)
	}
}

func ids(m map[string][]byte) []string {
	var out []string
	for id := range m {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// TestCopies plays what docs/copies.md says: two copies, one site gone, adoption, and
// the return of the owner.
func TestCopies(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	for site := range 2 {
		p.becomes(site, "SYNC")
	}
	strict := p.File().Mailboxes[1]
	p.msgw(0, 0, "copies", "--silent", "3s", "--wait", "20s", "--adopt", "1h")
	p.msgw(0, 0, "mailbox", "policy", strict.ID, "strict")
	p.msgw(0, 2, "copies", "--wait", "1h")
	p.msgw(0, 2, "copies", "--policy", "often")
	p.msgw(1, 2, "node", "adopt", "msgw2") // itself
	if out := p.msgw(1, 2, "node", "adopt", "msgw1"); !strings.Contains(out, "lives") {
		t.Errorf("adoption of a site that lives: %s", out)
	}

	// A message that is taken at one site is at both, small or large.
	small, large := report.New(1, 1, 20_000), report.New(1, 2, 3<<20)
	first, second := p.mustGive(0, small), p.mustGive(0, large)
	if got, err := p.fetch(1, 0); err != nil || len(got) != 0 {
		t.Errorf("msgw2 lists %v, %v: they are msgw1's", ids(got), err)
	}
	for site, where := range []string{"own", "copy"} {
		out := p.msgw(site, 0, "journal", "list", "--mailbox", p.box.ID)
		for _, id := range []string{first, second} {
			if !regexp.MustCompile(id + ` .* ` + where + ` `).MatchString(out) {
				t.Errorf("%s: %s is not listed as %s:\n%s", p.nodes[site].Name, id, where, out)
			}
		}
		if out := p.msgw(site, 0, "journal", "verify"); !strings.HasPrefix(out, "2 messages, ") || !strings.HasSuffix(out, ": 0 damaged\n") {
			t.Errorf("verify: %s", out)
		}
	}
	if out := p.msgw(0, 0, "journal", "show", first); !regexp.MustCompile(`copies +2\n`).MatchString(out) {
		t.Errorf("show: %s", out)
	}
	p.msgw(0, 2, "journal", "show", "11111111-2222-3333-4444-555555555555")
	p.export(first, small)
	noPlaintextOnDisk(t, p.nodes[1].Dir)

	// A record that rots at one site is repaired from the other, whoever finds it.
	for site := range 2 {
		p.rot(site, second)
		if out := p.msgw(site, 1, "journal", "verify"); !strings.Contains(out, "damaged: message "+second) {
			t.Errorf("verify, after the disk of %s has rotted: %s", p.nodes[site].Name, out)
		}
		labtest.Within(t, 20*time.Second, "it is repaired", func() error {
			if d := p.status(site).Trouble; len(d) > 0 {
				return fmt.Errorf("%q", d)
			}
			return nil
		})
		p.msgw(site, 0, "journal", "verify")
	}
	if r := p.status(0).Copies; r.Repaired != 2 {
		t.Errorf("repaired: %+v", r)
	}

	p.spoiltSegment(first, second)

	// Without the other site mail is taken with one copy, but not for a strict mailbox,
	// nor for one and another that is strict.
	p.lab("kill", "msgw2")
	alone := report.New(1, 3, 20_000)
	began := time.Now()
	third := p.mustGive(0, alone)
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("the first message without the other site took %v", d)
	}
	for _, to := range [][]string{{strict.Address}, {p.box.Address, strict.Address}} {
		_, err := p.give(0, alone, to...)
		if te := (*textproto.Error)(nil); !errors.As(err, &te) || te.Code != 451 {
			t.Errorf("to %v without the other site: %v, expected 451", to, err)
		}
	}
	s := p.status(0)
	if s.Copies.State != "DEGRADED" || s.Copies.Single != 1 || !s.Accepting || !slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.Contains(x, "1 messages are known to have one copy") }) {
		t.Errorf("status: %+v, trouble %q", s.Copies, s.Trouble)
	}
	p.msgw(0, 1, "status")
	if out := p.msgw(0, 0, "journal", "show", third); !strings.Contains(out, "1: the other site is not known to hold it") {
		t.Errorf("show: %s", out)
	}
	// A node that does not run has its journals read from the disk.
	if out := p.msgw(1, 0, "journal", "list"); strings.Count(out, " copy ") != 2 {
		t.Errorf("msgw2, not running, lists:\n%s", out)
	}
	p.msgw(1, 0, "journal", "verify")
	p.msgw(1, 2, "journal", "single-copy")

	p.lab("start", "msgw2")
	p.becomes(0, "SYNC")
	if out := p.msgw(0, 0, "journal", "single-copy"); strings.Contains(out, "own") {
		t.Errorf("after the return of msgw2 these have one copy:\n%s", out)
	}
	if out := p.msgw(1, 0, "journal", "list"); strings.Count(out, " copy ") != 3 {
		t.Errorf("msgw2, back, holds:\n%s", out)
	}

	// The owner is gone: its messages are handed over at the other site.
	p.lab("kill", "msgw1")
	if got, err := p.fetch(1, 0); err != nil || len(got) != 0 {
		t.Errorf("before the adoption: %v, %v", ids(got), err)
	}
	labtest.Within(t, 10*time.Second, "msgw2 adopts", func() error {
		out, err := p.Msgw("node", "adopt", "msgw1", "--dir", p.nodes[1].Dir)
		if err == nil && !strings.Contains(out, "3 messages of msgw1") {
			t.Errorf("adopt: %s", out)
		}
		return err
	})
	if w := p.status(1).Waiting; w.Messages != 3 {
		t.Errorf("waiting at msgw2 after the adoption: %+v", w)
	}
	want := map[string][]byte{first: small, second: large, third: alone}
	got, err := p.fetch(1, 0)
	if err != nil || !slices.Equal(ids(got), ids(want)) {
		t.Fatalf("adopted: %v, %v, expected %v", ids(got), err, ids(want))
	}
	for id := range want {
		if !bytes.Equal(got[id], want[id]) {
			t.Errorf("%s differs", id)
		}
	}
	// One of them is deleted there, and msgw2 restarts meanwhile.
	deleted, err := p.fetch(1, 1)
	if err != nil || len(deleted) != 1 {
		t.Fatalf("deleted %v, %v", ids(deleted), err)
	}
	p.lab("kill", "msgw2")
	p.lab("start", "msgw2")
	labtest.Within(t, 20*time.Second, "msgw2 still hands over what it adopted", func() error {
		got, err := p.fetch(1, 0)
		if err == nil && len(got) != 2 {
			err = fmt.Errorf("%v", ids(got))
		}
		return err
	})

	// The owner is back: it lists the rest, and nothing comes twice.
	p.lab("start", "msgw1")
	for site := range 2 {
		p.becomes(site, "SYNC")
	}
	if got, err := p.fetch(1, 0); err != nil || len(got) != 0 {
		t.Errorf("after the return of the owner msgw2 lists %v, %v", ids(got), err)
	}
	rest, err := p.fetch(0, -1)
	if err != nil || len(rest) != 2 || slices.Equal(ids(rest), ids(want)) {
		t.Errorf("after its return msgw1 lists %v, %v", ids(rest), err)
	}
	for id := range deleted {
		if _, again := rest[id]; again {
			t.Errorf("%s was deleted and is handed over again", id)
		}
	}
	labtest.Within(t, 20*time.Second, "nothing is left anywhere", func() error {
		for site := range 2 {
			if out := p.msgw(site, 0, "journal", "list"); strings.Contains(out, p.box.ID) {
				return errors.New(out)
			}
		}
		return nil
	})
	if log, err := os.ReadFile(p.nodes[0].Dir + ".log"); err != nil || !regexp.MustCompile(`mail accepted.*`+first+`.* copies=2 `).Match(log) || !regexp.MustCompile(`mail accepted.*`+third+`.* copies=1 `).Match(log) {
		t.Errorf("the log does not say how many copies there are: %v", err)
	}
}

// rot changes an octet of a large message on the disk of a site.
func (p *pair) rot(site int, id string) {
	p.t.Helper()
	paths, err := filepath.Glob(filepath.Join(p.nodes[site].Dir, "*", "*", "bodies", id))
	if err != nil || len(paths) != 1 {
		p.t.Fatalf("body of %s: %v, %v", id, paths, err)
	}
	b, err := os.ReadFile(paths[0])
	if err != nil {
		p.t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(paths[0], b, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// spoiltSegment damages a record beyond recognition and does what docs/copies.md says: the
// message comes back from the other site, and the file can be moved away.
func (p *pair) spoiltSegment(want ...string) {
	p.t.Helper()
	p.lab("stop", "msgw1")
	segments, err := filepath.Glob(filepath.Join(p.nodes[0].Dir, "journal", "*", "*.seg"))
	if err != nil || len(segments) == 0 {
		p.t.Fatalf("segments: %v, %v", segments, err)
	}
	spoilt := ""
	for _, path := range segments {
		b, err := os.ReadFile(path)
		if err != nil {
			p.t.Fatal(err)
		}
		if i := bytes.Index(b, []byte("msj1")); i >= 0 && spoilt == "" {
			b[i+50] ^= 1 // in the header behind the record's prefix
			if err := os.WriteFile(path, b, 0o600); err != nil {
				p.t.Fatal(err)
			}
			os.Remove(strings.TrimSuffix(path, ".seg") + ".idx")
			spoilt = path
		}
	}
	p.lab("start", "msgw1")
	p.becomes(0, "SYNC")
	damage := func() bool {
		return slices.ContainsFunc(p.status(0).Trouble, func(x string) bool { return strings.HasPrefix(x, "damaged: "+spoilt) })
	}
	if !damage() {
		p.t.Errorf("status does not say that %s is damaged: %q", spoilt, p.status(0).Trouble)
	}
	for _, moved := range []bool{false, true} {
		if moved {
			p.lab("stop", "msgw1")
			if err := os.Rename(spoilt, filepath.Join(p.t.TempDir(), "spoilt.seg")); err != nil {
				p.t.Fatal(err)
			}
			p.lab("start", "msgw1")
			p.becomes(0, "SYNC")
			if damage() {
				p.t.Errorf("trouble with the file moved away: %q", p.status(0).Trouble)
			}
		}
		out := p.msgw(0, 0, "journal", "list")
		for _, id := range want {
			if !strings.Contains(out, id) {
				p.t.Errorf("%s is gone from msgw1:\n%s", id, out)
			}
		}
	}
}

// export writes a message to files, sealed and opened.
func (p *pair) export(id string, want []byte) {
	p.t.Helper()
	dir := p.t.TempDir()
	p.msgw(0, 0, "journal", "export", id, "--to", dir)
	sealed, err := os.ReadFile(filepath.Join(dir, id+".age"))
	if err != nil || !bytes.HasPrefix(sealed, []byte("age-encryption.org/v1\n")) || bytes.Contains(sealed, want[:200]) {
		p.t.Errorf("sealed export: %v, begins %.40q", err, sealed)
	}
	p.msgw(0, 2, "journal", "export", id, "--to", dir) // it exists
	for password, exit := range map[string]int{p.box.Password: 0, "not the password": 2} {
		cmd := p.Command("journal", "export", "--open", id, "--to", dir, "--dir", p.nodes[0].Dir)
		cmd.Stdin = strings.NewReader(password + "\n")
		if out, err := cmd.CombinedOutput(); exitCodeOf(err) != exit || strings.Contains(string(out), password) {
			p.t.Errorf("export --open: %v\n%s", err, out)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, id+".eml")); err != nil || !bytes.Equal(b, want) {
		p.t.Errorf("opened export: %v, %d octets, expected %d", err, len(b), len(want))
	}
	var m admin.Message
	if err := json.Unmarshal([]byte(p.msgw(0, 0, "journal", "show", id, "--json")), &m); err != nil || m.ID != id || m.Octets != int64(len(want)) || m.Mailbox != p.box.ID {
		p.t.Errorf("show --json: %+v, %v", m, err)
	}
}
