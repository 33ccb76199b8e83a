//go:build peers

package senders

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"msgw/internal/lab"
	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
	"msgw/test/corpus"
)

// octets is what a program makes of the difficult messages.
type octets struct {
	ways    []string // how it is given them: DATA, BDAT, or as a file
	without []string // messages that it is not given, by name
	refuses []string // messages that it does not take, as "name by way: why"
	returns []string // messages that it takes and then does not send, as "name by way"
	carries []string // what it was seen to put on the wire; see traits
}

// difficult is a message to be sent.
type difficult struct {
	name, way string
	from      string // each has a sender of its own, but for those that have none
	to        []string
	octets    []byte
}

// difficultMessages returns the corpus and reports of 1 KB to 20 MB, in each way.
func difficultMessages(ways, without []string, one, two lab.Mailbox) (all []difficult) {
	add := func(name, from string, needsBDAT bool, octets []byte, to ...string) {
		for i, way := range ways {
			if slices.Contains(without, name) || way == "DATA" && needsBDAT || i > 0 && len(octets) > 4<<20 {
				continue
			}
			d := difficult{name, way, "", to, octets}
			if from != "" {
				local, _, _ := strings.Cut(from, "@")
				d.from = strings.ToLower(local + "-" + name + "-" + way + "@" + senderHost)
			}
			all = append(all, d)
		}
	}
	for _, m := range corpus.All() {
		add(m.Name, m.From, m.NeedsBDAT, m.Octets(), one.Address)
	}
	add("report-1k", "reports@", false, report.Postfix(7, 1, 1<<10), one.Address)
	add("report-20m", "reports@", false, report.New(7, 20, 20<<20), one.Address)
	add("report-two-mailboxes", "reports@", false, report.New(7, 2, 8<<10), one.Address, two.Address)
	return all
}

// octetByOctet gives a program the difficult messages, which it sends through the relay:
// what it put on the wire is what the archive has. give says why one was not taken, or
// nothing; sent waits until all are sent and returns what came back.
func octetByOctet(t *testing.T, w *world, who string, want octets, give func(difficult) string, sent func() string) {
	one, two := w.box(t), w.box(t)
	r := startRelay(t)
	var mu sync.Mutex
	var refused []string
	taken := map[string]difficult{} // by sender
	nulls := 0                      // without one
	var wg sync.WaitGroup
	work := make(chan difficult)
	for range 3 {
		wg.Go(func() {
			for d := range work {
				why := give(d)
				mu.Lock()
				switch {
				case why != "":
					refused = append(refused, d.name+" by "+d.way+": "+why)
				case d.from == "":
					nulls++
				default:
					taken[d.from] = d
				}
				mu.Unlock()
			}
		})
	}
	for _, d := range difficultMessages(want.ways, want.without, one, two) {
		work <- d
	}
	close(work)
	wg.Wait()
	equal(t, who+" refuses", refused, want.refuses)
	back := sent()
	sessions := r.ended(t)
	accepted := judge(t, sessions, w.fetch(t, one, two))

	// Everything that was taken was sent, or came back.
	times, carries := map[string]int{}, map[string]bool{}
	for _, x := range accepted {
		times[x.from]++
		traits(x, carries)
	}
	if times[""] != nulls {
		t.Errorf("%d messages from nobody were taken, %d were sent", nulls, times[""])
	}
	var returned []string
	for from, d := range taken {
		switch {
		case times[from] == 1:
		case times[from] == 0 && strings.Contains(back, from):
			returned = append(returned, d.name+" by "+d.way)
		default:
			t.Errorf("%s by %s was sent %d times and did not come back", d.name, d.way, times[from])
		}
	}
	equal(t, who+" returns", returned, want.returns)
	equal(t, who+" carries", slices.Collect(maps.Keys(carries)), want.carries)
	t.Logf("%d messages in %d sessions, octet for octet", len(accepted), len(sessions))
}

// octetByOctet is told of a mail server.
func (m *mailServer) octetByOctet(t *testing.T, w *world, want octets) {
	s := m.client(t)
	octetByOctet(t, w, m.root.Name, want,
		func(d difficult) string {
			env := sender.Envelope{From: d.from, To: d.to}
			if d.way == "BDAT" {
				env.Chunks = &sender.Chunks{Sizes: []int{1000, 7, 70_000}}
			}
			_, err := s.Send(t.Context(), env, d.octets)
			return refusal(t, err)
		},
		func() string {
			m.waiting(t, 0)
			defer m.forget(t)
			return m.bounces(t)
		})
}

// equal compares two sets.
func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s %s\nnot %s", what, strings.Join(quoted(got), ", "), strings.Join(quoted(want), ", "))
	}
}

func quoted(list []string) (q []string) {
	for _, s := range list {
		q = append(q, fmt.Sprintf("%q", s))
	}
	return q
}

// traits notes what is difficult in a transaction.
func traits(x transaction, seen map[string]bool) {
	note := func(trait string, is bool) {
		if is {
			seen[trait] = true
		}
	}
	o := x.octets
	note("DATA", x.chunks == 0)
	note("BDAT", x.chunks > 0)
	note("several chunks", x.chunks > 1)
	note("BODY=8BITMIME", strings.Contains(x.params, "8BITMIME"))
	note("SMTPUTF8", strings.Contains(x.params, "SMTPUTF8"))
	note("null sender", x.from == "")
	note("two mailboxes", len(x.to) == 2)
	note("20 MB", len(o) >= 20<<20)
	note("NUL", bytes.IndexByte(o, 0) >= 0)
	note("invalid UTF-8", !utf8.Valid(o))
	clean := bytes.ReplaceAll(o, crlf, nil)
	note("bare CR", bytes.IndexByte(clean, '\r') >= 0)
	note("bare LF", bytes.IndexByte(clean, '\n') >= 0)
	note("LF dot", bytes.Contains(bytes.ReplaceAll(o, crlf, []byte("\r")), []byte("\n.")))
	note("no CRLF at the end", len(o) > 0 && !bytes.HasSuffix(o, crlf))
	header, body, ok := bytes.Cut(o, []byte("\r\n\r\n"))
	note("empty body", ok && len(body) == 0)
	note("header only", !ok)
	note("UTF-8 in the header", utf8.Valid(header) && bytes.ContainsFunc(header, func(r rune) bool { return r >= 0x80 }))
	for line := range bytes.SplitSeq(o, crlf) {
		note("line over 998", len(line) > 998)
		note("line over 64 KiB", len(line) > 64<<10)
		note("leading dot", len(line) > 0 && line[0] == '.')
	}
}
