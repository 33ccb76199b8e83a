//go:build peers

package archives

import (
	"bytes"
	"fmt"
	"maps"
	"testing"

	"msgw/internal/lab/report"
	"msgw/test/corpus"
)

// message is one to be sent.
type message struct {
	name    string
	from    string // envelope sender
	octets  []byte
	chunked bool // sent with BDAT
}

// difference says how two messages differ that are not equal: not any more when this
// is taken away from both.
type difference struct {
	why  string
	drop func([]byte) []byte
}

// corpusMessages are the difficult messages, reports of all kinds, and a large one.
func corpusMessages() []message {
	var all []message
	for i, m := range corpus.All() {
		octets := m.Octets()
		msg := message{m.Name, m.From, octets, m.NeedsBDAT || i%2 == 1}
		all = append(all, msg)
	}
	kinds := []func(uint64, int, int) []byte{report.New, report.OnPremises, report.Google, report.Postfix}
	for i := range 28 {
		all = append(all, message{fmt.Sprintf("report-%d", i), "journal@example.org", kinds[i%4](2, i, 3000+i*1111), i%2 == 0})
	}
	return append(all, message{"report-20MB", "journal@example.org", report.New(2, 100, 20<<20), true})
}

// handedOver returns what POP3 hands over of a message. There are two things that it
// cannot carry: an end other than CRLF, and a dot behind a bare LF.
func handedOver(m message) []byte {
	out := m.octets
	for _, c := range corpus.All() {
		if c.Name == m.name && c.LFDot {
			out = crlf(out)
		}
	}
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\r\n")) {
		out = append(bytes.Clone(out), "\r\n"...)
	}
	return out
}

// crlf makes every LF a CRLF.
func crlf(b []byte) []byte {
	var out []byte
	for i, c := range b {
		if c == '\n' && (i == 0 || b[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, c)
	}
	return out
}

// compare fails the test unless what a client wrote is what was sent: each message
// once, those that the client is known to change differing in that way and no other.
func (c *client) compare(t testing.TB, messages []message, written [][]byte) {
	t.Helper()
	got := map[string]int{} // how often
	for _, w := range written {
		got[string(c.comparable(c.message(t, w)))]++
	}
	if len(written) != len(messages) {
		t.Errorf("%s wrote %d messages, %d were to come", c.name, len(written), len(messages))
	}
	// Equal ones first, so that a changed message is not taken for another.
	var changed []message
	for _, m := range messages {
		want := string(c.comparable(handedOver(m)))
		if got[want] == 0 {
			changed = append(changed, m)
			continue
		}
		got[want]--
		if d, ok := c.changed[m.name]; ok {
			t.Errorf("%s: %s came unchanged, though it is known for changing it (%s)", c.name, m.name, d.why)
		}
	}
	maps.DeleteFunc(got, func(_ string, n int) bool { return n == 0 })
	for _, m := range changed {
		d, ok := c.changed[m.name]
		found := false
		for g := range got {
			if found = ok && bytes.Equal(d.drop([]byte(g)), d.drop(c.comparable(handedOver(m)))); found {
				if got[g]--; got[g] == 0 {
					delete(got, g)
				}
				break
			}
		}
		if !found {
			t.Errorf("%s: %s (%d octets) is not among what it wrote. Known: %q", c.name, m.name, len(m.octets), d.why)
		}
	}
	shown := 0
	for g, n := range got {
		if shown++; shown > 5 {
			t.Errorf("%s wrote %d messages that were not to come", c.name, len(got))
			break
		}
		t.Errorf("%s wrote what was not to come, %d times: %d octets, %.300q", c.name, n, len(g), g)
	}
}

// comparable is what of a message is the same before and after the client.
func (c *client) comparable(b []byte) []byte {
	if c.alike == nil {
		return b
	}
	return c.alike(b)
}

// message returns what a client was sent without the fields that stand before all but
// journal reports.
func (c *client) message(t testing.TB, written []byte) []byte {
	t.Helper()
	trace, octets := corpus.CutTrace(c.sent(written))
	if corpus.IsReport(octets) != (trace == nil) {
		t.Errorf("%s: fields before %.60q: %+v", c.name, octets, trace)
	}
	return octets
}

// wrote returns whether a file that the client wrote is a message, whole and unchanged.
func (c *client) wrote(m message, written []byte) bool {
	_, octets := corpus.CutTrace(c.sent(written))
	return bytes.Equal(c.comparable(octets), c.comparable(handedOver(m)))
}

// everyLF undoes what programs do that keep lines with LF: every LF becomes CRLF.
func everyLF(w []byte) []byte { return bytes.ReplaceAll(w, []byte("\n"), []byte("\r\n")) }

// bareLF is the difference of programs that know one line end.
var bareLF = difference{"bare LF becomes CRLF", crlf}

// replaced is the difference of a message that becomes another one, whole.
func replaced(why, by, want string) difference {
	return difference{why, func(b []byte) []byte {
		if string(b) == by {
			return []byte(want)
		}
		return b
	}}
}
