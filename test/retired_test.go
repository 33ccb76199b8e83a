package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab/report"
	"msgw/internal/node"
	"msgw/test/labtest"
)

// quorum waits until a site can make changes, or cannot.
func (p *pair) quorum(site int, want bool) {
	p.t.Helper()
	labtest.Within(p.t, 30*time.Second, fmt.Sprintf("quorum at %s is %v", p.nodes[site].Name, want), func() error {
		s, err := admin.NewClient(p.nodes[site].Dir, node.SocketFile).Status(p.t.Context())
		if err == nil && s.Quorum != want {
			err = fmt.Errorf("leader %q, voters %v", s.Leader, s.Voters)
		}
		return err
	})
}

// TestDeletedWhileCutOff deletes a mailbox while a site is cut off. What that site takes
// until it hears of it is listed, kept and handed over.
func TestDeletedWhileCutOff(t *testing.T) {
	t.Parallel()
	p := newPair(t, "--witness")
	for site := range 2 {
		p.becomes(site, "SYNC")
	}
	box := p.box
	p.msgw(0, 0, "copies", "--silent", "3s", "--adopt", "1h", "--adopt-confirmed", "1h")

	// A site that answers cannot be left out.
	p.msgw(0, 0, "mailbox", "suspend", box.ID)
	for name, text := range map[string]string{"msgw2": "msgw2 is not cut off", "msgw1": "this node is it", "witness": "expected the name of a site", "msgw3": "expected the name of a site"} {
		if out := p.msgw(0, 2, "mailbox", "delete", box.ID, "--cut-off", name); !strings.Contains(out, text) {
			t.Errorf("--cut-off %s: %s", name, out)
		}
	}
	p.msgw(0, 0, "mailbox", "activate", box.ID)

	// The mailbox is deleted while msgw2 is gone: only by name.
	p.lab("kill", "msgw2")
	p.quorum(0, true)
	p.msgw(0, 2, "mailbox", "delete", box.ID, "--cut-off", "msgw2") // it is active
	p.msgw(0, 0, "mailbox", "suspend", box.ID)
	if out := p.msgw(0, 1, "mailbox", "delete", box.ID); !strings.Contains(out, "msgw2 cannot say whether mailbox") {
		t.Errorf("delete: %s", out)
	}
	p.msgw(0, 2, "mailbox", "delete", box.ID, "--cut-off", "msgw1")
	if out := p.msgw(0, 0, "mailbox", "delete", box.ID, "--cut-off", "msgw2"); !strings.Contains(out, "is deleted") || !strings.Contains(out, "not yet applied at: msgw2") {
		t.Errorf("delete --cut-off: %s", out)
	}
	if got := rcpt(t, p.nodes[0].SMTP, box.Address); got != 550 {
		t.Errorf("mail for a deleted mailbox: %d", got)
	}
	if out := p.msgw(0, 0, "mailbox", "list"); !regexp.MustCompile(box.ID + ` +retired +msgw1: 0, msgw2: not known`).MatchString(out) {
		t.Errorf("list while msgw2 is cut off:\n%s", out)
	}

	// msgw1 does not know any more whether that still holds once it is alone, and msgw2,
	// alone, has not heard of it.
	p.lab("kill", "witness")
	labtest.Within(t, 20*time.Second, "msgw1 knows that it may not be up to date", func() error {
		if got := rcpt(t, p.nodes[0].SMTP, box.Address); got != 451 {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
	p.lab("kill", "msgw1")
	p.lab("start", "msgw2")
	p.becomes(1, "DEGRADED")
	want := map[string][]byte{}
	for i, size := range []int{2000, 20_000, 300_000} {
		msg := report.New(3, i, size)
		want[p.mustGive(1, msg)] = msg
	}

	// msgw2 is back, and hears of it.
	p.lab("start", "msgw1")
	p.lab("start", "witness")
	p.becomes(1, "SYNC")
	labtest.Within(t, 30*time.Second, "msgw2 refuses mail for it", func() error {
		if got := rcpt(t, p.nodes[1].SMTP, box.Address); got != 550 {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
	for site := range 2 {
		if out := p.msgw(site, 0, "mailbox", "list"); !regexp.MustCompile(box.ID + ` +retired, 3 waiting +msgw1: 0, msgw2: 3`).MatchString(out) {
			t.Errorf("list at %s:\n%s", p.nodes[site].Name, out)
		}
	}
	var listed []admin.Mailbox
	if err := json.Unmarshal([]byte(p.msgw(0, 0, "mailbox", "list", "--json")), &listed); err != nil || !slices.ContainsFunc(listed, func(m admin.Mailbox) bool {
		return m.ID == box.ID && m.Status == "retired" && m.Sites[1].Messages == 3 && m.Sites[0].Copies == 3
	}) {
		t.Errorf("list --json: %+v, %v", listed, err)
	}
	p.msgw(0, 2, "mailbox", "delete", box.ID)
	p.fetched(1, want, 1)

	// Lost, its mail is handed over by the other site.
	p.lab("kill", "msgw2")
	if out := p.msgw(0, 0, "mailbox", "list"); !regexp.MustCompile(box.ID + ` +retired, 2 waiting +msgw1: 0, msgw2: not known`).MatchString(out) {
		t.Errorf("list with msgw2 lost:\n%s", out)
	}
	labtest.Within(t, 10*time.Second, "msgw1 adopts", func() error {
		_, err := p.Msgw("node", "adopt", "msgw2", "--dir", p.nodes[0].Dir)
		return err
	})
	p.fetched(0, want, 1)
	p.lab("start", "msgw2")
	p.becomes(1, "SYNC")
	p.fetched(1, want, -1)
	if len(want) > 0 {
		t.Errorf("never fetched: %v", ids(want))
	}

	// Empty everywhere, it is kept for a day, out of sight.
	labtest.Within(t, 20*time.Second, "it is not listed any more", func() error {
		if out := p.msgw(0, 0, "mailbox", "list"); strings.Contains(out, box.ID) {
			return errors.New(out)
		}
		return nil
	})
	if out := p.msgw(0, 0, "mailbox", "list", "--all"); !regexp.MustCompile(box.ID + ` +retired +msgw1: 0, msgw2: 0`).MatchString(out) {
		t.Errorf("list --all:\n%s", out)
	}
}

// fetched fetches and deletes n messages at a site, all if n < 0, and takes them off
// those that are still wanted.
func (p *pair) fetched(site int, want map[string][]byte, n int) {
	p.t.Helper()
	var got map[string][]byte
	labtest.Within(p.t, 20*time.Second, p.nodes[site].Name+" lists what is left", func() error {
		all, err := p.fetch(site, 0)
		if err == nil && !slices.Equal(ids(all), ids(want)) {
			err = fmt.Errorf("%v, expected %v", ids(all), ids(want))
		}
		return err
	})
	got, err := p.fetch(site, n)
	if err != nil || n > 0 && len(got) != n {
		p.t.Fatalf("%s hands over %v, %v", p.nodes[site].Name, ids(got), err)
	}
	for id, msg := range got {
		if !bytes.Equal(msg, want[id]) {
			p.t.Errorf("%s: %d octets that are not what was sent", id, len(msg))
		}
		delete(want, id)
	}
}
