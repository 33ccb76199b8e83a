package test

import (
	"errors"
	"fmt"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab"
	"msgw/internal/lab/report"
	"msgw/test/labtest"
)

// until waits until a site's status is as it should be.
func (p *pair) until(site int, what string, ok func(admin.Status) bool) {
	p.t.Helper()
	labtest.Within(p.t, 40*time.Second, p.nodes[site].Name+": "+what, func() error {
		s, err := p.tryStatus(site)
		if err == nil && !ok(s) {
			err = fmt.Errorf("%+v, trouble %q", s, s.Trouble)
		}
		return err
	})
}

func noQuorum(s admin.Status) bool { return !s.Quorum }
func bothVote(s admin.Status) bool { return s.Quorum && len(s.Voters) == 2 }
func inSync(s admin.Status) bool   { return bothVote(s) && s.Copies.State == "SYNC" }

// refuses runs a command that must be refused with exit code 2 and words in its answer.
func (p *pair) refuses(site int, words string, args ...string) {
	p.t.Helper()
	if out := p.msgw(site, 2, args...); !strings.Contains(out, words) {
		p.t.Errorf("msgw %s: expected %q in\n%s", strings.Join(args, " "), words, out)
	}
}

// together starts a pair and waits until it is in SYNC.
func together(t *testing.T) *pair {
	p := newPair(t)
	for site := range 2 {
		p.until(site, "in SYNC", inSync)
	}
	return p
}

// A site is lost and its disk with it; the other one goes on alone, with mail coming in
// and going out all the time; the old one comes back, with its mail.
func TestRecover(t *testing.T) {
	t.Parallel()
	p := together(t)
	p.refuses(0, "there is a quorum", "recover", "msgw2")
	p.refuses(0, "there is a quorum", "yield")
	p.refuses(0, "share one configuration", "rejoin", "msgw2")
	waiting, err := p.give(0, report.New(7, 1, 20_000))
	if err != nil {
		t.Fatal(err)
	}
	p.lab("kill", "msgw1")
	p.until(1, "no quorum", noQuorum)
	p.refuses(1, "no other node is named nobody", "recover", "nobody")
	p.refuses(1, "expected what `msgw yield` printed", "recover", "--yield", "nonsense")
	p.msgw(1, 1, "invite", "--replace", "msgw1") // it needs a quorum
	p.msgw(1, 1, "mailbox", "create")

	// Mail is given and fetched while the glass is broken, and no connection ends for it.
	stop := make(chan struct{})
	done := make(chan error, 1)
	taken := map[string]bool{}
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			id, err := p.give(1, report.New(8, i, 3000))
			if err != nil {
				done <- err
				return
			}
			taken[id] = true
		}
	}()
	time.Sleep(300 * time.Millisecond)
	out := p.msgw(1, 0, "recover", "msgw1")
	if !strings.Contains(out, "goes on alone in epoch 2-") {
		t.Error(out)
	}
	time.Sleep(300 * time.Millisecond)
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("mail while the glass was broken: %v", err)
	}
	p.refuses(1, "there is a quorum", "recover", "msgw1")
	made := p.msgw(1, 0, "mailbox", "create", "--json")

	p.lab("start", "msgw1")
	for site := range 2 {
		p.until(site, "in SYNC", inSync)
	}
	p.until(0, "has what was changed", func(admin.Status) bool {
		out, err := p.Msgw("mailbox", "list", "--dir", p.nodes[0].Dir)
		return err == nil && strings.Count(out, "mbx-") == strings.Count(made, `"id"`)+2
	})
	if old, err := filepath.Glob(filepath.Join(p.nodes[0].Dir, "raft.before-*", "raft.db")); err != nil || len(old) != 1 {
		t.Errorf("raft's old directory: %v, %v", old, err)
	}
	got, err := p.fetch(0, -1)
	if err != nil || got[waiting] == nil {
		t.Errorf("what waited at msgw1: %v, %v", ids(got), err)
	}
	rest, err := p.fetch(1, -1)
	if err != nil || len(rest) != len(taken) {
		t.Errorf("%d of %d messages that msgw2 took, %v", len(rest), len(taken), err)
	}
	s := p.status(0)
	if s.Epoch != 2 || p.status(1).EpochID != s.EpochID {
		t.Errorf("epochs %d-%s and %d-%s", s.Epoch, s.EpochID, p.status(1).Epoch, p.status(1).EpochID)
	}
}

// second is a node that the lab does not know, started by hand.
func (p *pair) serve(config string) *exec.Cmd {
	p.t.Helper()
	log, err := os.OpenFile(config+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := p.Command("serve", "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		labtest.CheckLog(p.t, config+".log")
	})
	return cmd
}

// elsewhere copies a site's configuration file for another state directory and other
// addresses.
func (p *pair) elsewhere(site int, dir string) (config string, row lab.NodeRow) {
	p.t.Helper()
	row = p.nodes[site]
	b, err := os.ReadFile(filepath.Join(p.Dir, row.Name+".toml"))
	if err != nil {
		p.t.Fatal(err)
	}
	host := row.SMTP[:strings.LastIndexByte(row.SMTP, ':')]
	other := host[:strings.LastIndexByte(host, '.')] + ".99"
	text := strings.ReplaceAll(strings.ReplaceAll(string(b), row.Dir, dir), host, other)
	config = dir + ".toml"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	row.Dir = dir
	row.SMTP, row.POP3S = strings.Replace(row.SMTP, host, other, 1), strings.Replace(row.POP3S, host, other, 1)
	return config, row
}

// copyDir copies a state directory as it is; nothing runs in it.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// A new machine takes the place of a lost one; the old one turns up again.
func TestReplace(t *testing.T) {
	t.Parallel()
	p := together(t)
	p.refuses(0, "msgw2 lives", "invite", "--replace", "msgw2")
	p.refuses(0, "no node is named msgw9", "invite", "--replace", "msgw9")
	p.refuses(0, "this node is msgw1", "invite", "--replace", "msgw1")
	var both []string
	for i := range 3 {
		both = append(both, p.mustGive(1, report.New(9, i, 30_000)))
	}
	// One that only msgw2 has.
	p.lab("kill", "msgw1")
	p.until(1, "without msgw1", func(s admin.Status) bool { return s.Copies.State == "DEGRADED" })
	only := p.mustGive(1, report.New(9, 10, 5000))
	p.lab("kill", "msgw2")
	old := filepath.Join(t.TempDir(), "old")
	copyDir(t, p.nodes[1].Dir, old)
	if err := os.RemoveAll(p.nodes[1].Dir); err != nil {
		t.Fatal(err)
	}
	p.lab("start", "msgw1")
	p.until(0, "no quorum", noQuorum)
	p.msgw(0, 0, "recover", "msgw2")
	late := lastLine(p.msgw(0, 0, "invite", "--replace", "msgw2", "--for", "1s"))
	token := lastLine(p.msgw(0, 0, "invite", "--replace", "msgw2"))
	time.Sleep(time.Second)

	// Not for another name, and not over what is there.
	config := filepath.Join(p.Dir, "msgw2.toml")
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(p.Dir, "wrong.toml")
	text := strings.ReplaceAll(strings.Replace(string(b), `"msgw2"`, `"msgw3"`, 1), p.nodes[1].Dir, p.nodes[1].Dir+"-wrong")
	if err := os.WriteFile(wrong, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Msgw("join", token, "--config", wrong); exitCodeOf(err) != 2 || !strings.Contains(out, "for a node named msgw2") {
		t.Errorf("join as msgw3: %v\n%s", err, out)
	}
	if out, err := p.Msgw("join", token, "--config", filepath.Join(p.Dir, "msgw1.toml")); exitCodeOf(err) != 2 || !strings.Contains(out, "is not empty") {
		t.Errorf("join over msgw1: %v\n%s", err, out)
	}
	if out, err := p.Msgw("join", late, "--config", config); exitCodeOf(err) != 2 || !strings.Contains(out, "expired") {
		t.Errorf("join with an old token: %v\n%s", err, out)
	}
	if out, err := p.Msgw("join", token, "--config", config); err != nil {
		t.Fatalf("join: %v\n%s", err, out)
	}
	// Twice.
	if err := os.WriteFile(wrong, []byte(strings.ReplaceAll(string(b), p.nodes[1].Dir, p.nodes[1].Dir+"-again")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Msgw("join", token, "--config", wrong); exitCodeOf(err) != 2 || !strings.Contains(out, "it was used") {
		t.Errorf("the token again: %v\n%s", err, out)
	}
	if left, err := filepath.Glob(p.nodes[1].Dir + "-*/*"); err != nil || slices.ContainsFunc(left, func(f string) bool { return filepath.Base(f) != "lock" }) {
		t.Errorf("what was refused left %v, %v", left, err)
	}
	p.lab("start", "msgw2")
	for site := range 2 {
		p.until(site, "in SYNC", inSync)
	}
	got, err := p.fetch(1, 0)
	if err != nil || !slices.Equal(ids(got), slices.Sorted(slices.Values(both))) {
		t.Errorf("the new msgw2 lists %v, %v, expected %v", ids(got), err, both)
	}

	// The old one, switched on again: it learns what became of it, takes no mail, and hands
	// over what it has.
	oldConfig, row := p.elsewhere(1, old)
	p.serve(oldConfig)
	p.nodes[1], row = row, p.nodes[1]
	p.until(1, "knows that it was replaced", func(s admin.Status) bool {
		return slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.Contains(x, "was replaced") })
	})
	var te *textproto.Error
	if _, err := p.give(1, report.New(9, 11, 100)); !errors.As(err, &te) || te.Code/100 != 4 {
		t.Errorf("the old one answers mail with %v", err)
	}
	got, err = p.fetch(1, -1)
	if err != nil || got[only] == nil || len(got) != 4 {
		t.Errorf("the old one hands over %v, %v", ids(got), err)
	}
	p.refuses(1, "no member", "recover", "msgw1")
	p.nodes[1] = row
	for site := range 2 {
		p.until(site, "in SYNC still", func(s admin.Status) bool { return inSync(s) && len(s.Trouble) == 0 })
	}
	if got, err := p.fetch(1, 0); err != nil || len(got) != 3 {
		t.Errorf("after that the new msgw2 lists %v, %v", ids(got), err)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// The whole state directory is put back to an earlier moment, then raft's alone is lost.
func TestSetBack(t *testing.T) {
	t.Parallel()
	p := together(t)
	before := p.mustGive(1, report.New(11, 0, 20_000))
	p.lab("kill", "msgw2")
	copied := filepath.Join(t.TempDir(), "copy")
	copyDir(t, p.nodes[1].Dir, copied)
	p.lab("start", "msgw2")
	p.until(1, "in SYNC", inSync)
	p.msgw(1, 0, "node", "weight", "msgw1", "7")
	p.msgw(0, 0, "mailbox", "create")
	after := p.mustGive(1, report.New(11, 1, 20_000))
	p.lab("kill", "msgw2")
	if err := os.RemoveAll(p.nodes[1].Dir); err != nil {
		t.Fatal(err)
	}
	copyDir(t, copied, p.nodes[1].Dir)
	p.lab("start", "msgw2")
	rejoined := func(epoch uint64) {
		t.Helper()
		for site := range 2 {
			p.until(site, fmt.Sprintf("in SYNC in epoch %d", epoch), func(s admin.Status) bool {
				return inSync(s) && s.Epoch == epoch && len(s.Trouble) == 0
			})
		}
	}
	rejoined(2)
	log, err := os.ReadFile(p.nodes[1].Dir + ".log")
	if err != nil || !strings.Contains(string(log), "set back to an earlier state") {
		t.Errorf("msgw2 does not say why: %v", err)
	}
	if out := p.msgw(1, 0, "node", "list"); !strings.Contains(out, " 7") {
		t.Errorf("the weight is lost:\n%s", out)
	}
	got, err := p.fetch(1, 0)
	if err != nil || got[before] == nil || got[after] == nil {
		t.Errorf("msgw2 lists %v, %v, expected %s and %s", ids(got), err, before, after)
	}
	// Once more, to before it rejoined: its server id of then is nobody's.
	p.lab("kill", "msgw2")
	if err := os.RemoveAll(p.nodes[1].Dir); err != nil {
		t.Fatal(err)
	}
	copyDir(t, copied, p.nodes[1].Dir)
	p.lab("start", "msgw2")
	p.until(1, "is back", func(s admin.Status) bool { return inSync(s) && s.Epoch >= 2 && len(s.Trouble) == 0 })
	epoch := p.status(1).Epoch

	p.lab("kill", "msgw2")
	if err := os.RemoveAll(filepath.Join(p.nodes[1].Dir, "raft")); err != nil {
		t.Fatal(err)
	}
	p.lab("start", "msgw2")
	rejoined(epoch + 1)
	p.msgw(1, 0, "node", "weight", "msgw1", "8")
	if got, err := p.fetch(1, -1); err != nil || len(got) != 2 {
		t.Errorf("msgw2 lists %v, %v", ids(got), err)
	}
}

// Both sites went on alone, with mail and mailboxes of their own.
func TestFork(t *testing.T) {
	t.Parallel()
	p := together(t)
	create := func(site int) lab.Mailbox {
		t.Helper()
		c, err := p.admin(site).CreateMailbox(t.Context(), admin.CreateMailbox{})
		if err != nil {
			t.Fatal(err)
		}
		return lab.Mailbox{ID: c.ID, Address: c.Address, Password: c.Password}
	}
	var made [2]lab.Mailbox
	var sent [2]string
	p.lab("kill", "msgw2")
	for _, site := range []int{0, 1} {
		p.until(site, "no quorum", noQuorum)
		p.msgw(site, 0, "recover", p.nodes[1-site].Name)
		made[site] = create(site)
		p.until(site, "takes mail alone", func(s admin.Status) bool { return s.Copies.State == "DEGRADED" })
		id, err := p.give(site, report.New(13, site, 4000), made[site].Address)
		if err != nil {
			t.Fatal(err)
		}
		sent[site] = id
		p.msgw(site, 0, "node", "weight", "msgw1", fmt.Sprint(3+site))
		if site == 0 {
			p.lab("kill", "msgw1")
			p.lab("start", "msgw2")
		}
	}
	p.lab("start", "msgw1")
	for site := range 2 {
		p.until(site, "sees the fork", func(s admin.Status) bool {
			return slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.HasPrefix(x, "fork: "+p.nodes[1-site].Name) })
		})
		if _, err := p.give(site, report.New(13, 5, 1000), made[site].Address); err != nil {
			t.Errorf("mail during the fork: %v", err)
		}
	}
	out := p.msgw(0, 0, "rejoin")
	for _, want := range []string{"`msgw node weight msgw1 3`", "mailbox " + made[0].ID + " was created; it is taken along"} {
		if !strings.Contains(out, want) {
			t.Errorf("expected %q in\n%s", want, out)
		}
	}
	p.refuses(0, "no other node is named msgw1", "rejoin", "msgw1")
	p.msgw(0, 0, "rejoin", "msgw2")
	for site := range 2 {
		p.until(site, "in SYNC", inSync)
	}
	b, err := os.ReadFile(filepath.Join(p.nodes[0].Dir, "rejoined.txt"))
	if err != nil || !strings.Contains(string(b), "`msgw node weight msgw1 3`") {
		t.Errorf("rejoined.txt: %v\n%s", err, b)
	}
	if out := p.msgw(0, 0, "rejoin"); !strings.Contains(out, "no node in reach is of another lineage") {
		t.Error(out)
	}
	// Everything can be read that was taken on either side.
	for site := range 2 {
		p.box = made[site]
		got, err := p.fetch(site, -1)
		if err != nil || got[sent[site]] == nil || len(got) != 2 {
			t.Errorf("%s hands over %v, %v", p.nodes[site].Name, ids(got), err)
		}
	}
	if w := p.status(0).Waiting.Messages + p.status(1).Waiting.Messages; w != 0 {
		t.Errorf("%d messages wait", w)
	}
}

func (p *pair) admin(site int) *admin.Client {
	return admin.NewClient(p.nodes[site].Dir, "msgw.sock")
}

// A site yields while the line is cut, and cannot change its mind.
func TestYield(t *testing.T) {
	t.Parallel()
	p := together(t)
	p.lab("kill", "msgw2")
	p.until(0, "no quorum", noQuorum)
	token := lastLine(p.msgw(0, 0, "yield"))
	if again := lastLine(p.msgw(0, 0, "yield")); !strings.HasPrefix(again, "msgw-yield-1-") {
		t.Errorf("a second token: %s", again)
	}
	p.msgw(0, 1, "node", "weight", "msgw1", "5")
	if _, err := p.give(0, report.New(15, 0, 2000)); err != nil {
		t.Errorf("mail at the site that yielded: %v", err)
	}
	p.refuses(0, "is not another member", "recover", "--yield", token) // its own
	p.lab("kill", "msgw1")
	p.lab("start", "msgw2")
	p.until(1, "no quorum", noQuorum)
	forged := token[:len(token)-6] + "AAAAAA"
	p.refuses(1, "yield token", "recover", "--yield", forged)
	p.lab("start", "msgw1") // it lives, votes no more, and asks to be taken in
	for site := range 2 {
		p.until(site, "in SYNC", func(s admin.Status) bool { return inSync(s) && s.Epoch == 2 })
	}
	p.refuses(1, "it is of epoch 1", "recover", "--yield", token) // over and done
	if got, err := p.fetch(0, -1); err != nil || len(got) != 1 {
		t.Errorf("what it took meanwhile: %v, %v", ids(got), err)
	}
}

// A site leaves: drained, emptied, removed; and in a hurry; and lost for good.
func TestRemove(t *testing.T) {
	t.Parallel()
	p := together(t)
	p.refuses(0, "this node is msgw1", "node", "remove", "msgw1")
	p.refuses(0, "no node is named msgw7", "node", "remove", "msgw7")
	p.refuses(0, "msgw2 lives", "node", "remove", "msgw2", "--lost")
	id := p.mustGive(1, report.New(17, 0, 20_000))
	if out := p.msgw(0, 1, "node", "remove", "msgw2", "--for", "1s"); !strings.Contains(out, "1 messages wait at msgw2 until the archive has fetched them") {
		t.Error(out)
	}
	if got, err := p.fetch(1, -1); err != nil || got[id] == nil {
		t.Fatalf("%v, %v", ids(got), err)
	}
	p.msgw(0, 0, "node", "remove", "msgw2")
	p.until(0, "is alone", func(s admin.Status) bool {
		return s.Quorum && slices.Equal(s.Voters, []string{"msgw1"}) && len(s.Peers) == 0 && s.Copies.State == "ALONE"
	})
	p.until(1, "knows", func(s admin.Status) bool {
		return !s.Accepting && slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.Contains(x, "no member of the appliance any more") })
	})
	var te *textproto.Error
	if _, err := p.give(1, report.New(17, 1, 100)); !errors.As(err, &te) || te.Code/100 != 4 {
		t.Errorf("the removed site answers mail with %v", err)
	}
	p.refuses(0, "msgw2 was removed", "node", "remove", "msgw2")
	p.msgw(0, 0, "node", "weight", "msgw1", "2")
	p.lab("kill", "msgw2")
	p.lab("start", "msgw2")
	p.until(1, "still knows", func(s admin.Status) bool { return !s.Accepting })
	if _, err := p.give(0, report.New(17, 2, 100)); err != nil {
		t.Errorf("the site that is left takes no mail: %v", err)
	}
}

// What waits at a site that leaves in a hurry, or is lost, is handed over at the other.
func TestRemoveAndAdopt(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("lost %v", lost), func(t *testing.T) {
			t.Parallel()
			p := together(t)
			var all []string
			for i := range 5 {
				all = append(all, p.mustGive(1, report.New(19, i, 20_000)))
			}
			if lost {
				p.lab("kill", "msgw2")
				p.until(0, "no quorum", noQuorum)
				p.msgw(0, 1, "node", "remove", "msgw2")
				p.msgw(0, 1, "node", "remove", "msgw2", "--lost") // no quorum
				p.msgw(0, 0, "recover", "msgw2")
				if out := p.msgw(0, 0, "node", "remove", "msgw2", "--lost"); !strings.Contains(out, "5 messages of it are handed over here") {
					t.Error(out)
				}
			} else if out := p.msgw(0, 0, "node", "remove", "msgw2", "--adopt"); !strings.Contains(out, "5 messages of it are handed over here") {
				t.Error(out)
			}
			p.lab("kill", "msgw1")
			p.lab("start", "msgw1")
			got, err := map[string][]byte(nil), error(nil)
			labtest.Within(t, 30*time.Second, "msgw1 hands them over", func() error {
				got, err = p.fetch(0, 0)
				if err == nil && !slices.Equal(ids(got), slices.Sorted(slices.Values(all))) {
					err = fmt.Errorf("%v", ids(got))
				}
				return err
			})
			if _, err := p.fetch(0, -1); err != nil {
				t.Error(err)
			}
			p.until(0, "nothing waits", func(s admin.Status) bool { return s.Waiting.Messages == 0 })
		})
	}
}

// A site and the witness are lost together; the witness comes back, then the site. And a
// lost witness is replaced.
func TestRecoverFromTwoLosses(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--witness")
	three := func(s admin.Status) bool { return s.Quorum && len(s.Voters) == 3 && len(s.Trouble) == 0 }
	p.until(0, "all vote", three)
	p.refuses(2, "a witness cannot go on alone", "recover", "msgw1", "msgw2")
	p.lab("kill", "msgw1")
	p.until(1, "goes on with the witness", func(s admin.Status) bool { return s.Quorum && s.Leader == "msgw2" })
	p.msgw(1, 0, "node", "weight", "msgw2", "4")
	p.lab("kill", "witness")
	p.until(1, "no quorum", noQuorum)
	p.refuses(1, "witness is not named", "recover", "msgw1")
	if out := p.msgw(1, 0, "recover"); !strings.Contains(out, "`msgw recover msgw1 witness`") {
		t.Error(out)
	}
	if out := p.msgw(1, 0, "recover", "msgw1", "witness"); !strings.Contains(out, "are missing here") {
		t.Error(out)
	}
	p.lab("start", "witness")
	p.until(1, "votes with the witness", func(s admin.Status) bool { return bothVote(s) && slices.Contains(s.Voters, "witness") })
	p.lab("start", "msgw1")
	for site := range 3 {
		p.until(site, "all vote again", func(s admin.Status) bool { return three(s) && s.Epoch == 2 })
	}

	p.lab("kill", "witness")
	if err := os.RemoveAll(p.nodes[2].Dir); err != nil {
		t.Fatal(err)
	}
	labtest.Within(t, 20*time.Second, "the witness is gone", func() error {
		out, err := p.Msgw("invite", "--replace", "witness", "--dir", p.nodes[0].Dir)
		if err == nil {
			out, err = p.Msgw("join", lastLine(out), "--config", filepath.Join(p.Dir, "witness.toml"))
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	p.lab("start", "witness")
	for site := range 3 {
		p.until(site, "all vote with the new witness", three)
	}
	p.msgw(0, 0, "node", "remove", "witness")
	for site := range 2 {
		p.until(site, "two vote", func(s admin.Status) bool { return bothVote(s) && len(s.Peers) == 1 && len(s.Trouble) == 0 })
	}
	p.until(2, "the witness knows", func(s admin.Status) bool {
		return slices.ContainsFunc(s.Trouble, func(x string) bool { return strings.Contains(x, "no member of the appliance any more") })
	})
}
