package corpus

import (
	"bytes"
	"regexp"
)

// fields is what stands before a message that is not a journal report, at its hand-over.
// Programs fold header lines anew.
var fields = regexp.MustCompile(`^Return-Path:\s+<(?P<from>.*)>\r?\n` +
	`Received:\s+from\s+\S+\s+\(\[[0-9A-Fa-f.:IPv]+\]\)\s+by\s+\S+\s+with\s+(?:UTF8SMTP|E?SMTP)S?\s+(?:\(TLS\s+1\.[23]\s+\w+\)\s+)?id\s+[0-9a-f-]{36}(?:\s+for\s+<.*>)?;\s+\w{3}, .*\r?\n` +
	`X-Envelope-From:\s+<.*>\r?\n` +
	`((?:X-Envelope-To:\s+<.*>\r?\n)+)`)

var envelopeTo = regexp.MustCompile(`(?m)^X-Envelope-To:\s+<(.*)>\r?$`)

// Trace is what the fields before a message say.
type Trace struct {
	From string   // envelope sender
	To   []string // whom the copy is for
}

// CutTrace returns a message as it was handed over without the fields that stand before
// it, and what they say; nil if there are none.
func CutTrace(b []byte) (*Trace, []byte) {
	m := fields.FindSubmatchIndex(b)
	if m == nil {
		return nil, b
	}
	t := &Trace{From: string(b[m[2]:m[3]])}
	for _, to := range envelopeTo.FindAllSubmatch(b[m[4]:m[5]], -1) {
		t.To = append(t.To, string(to[1]))
	}
	return t, b[m[1]:]
}

var reportMarker = regexp.MustCompile(`(?im)^(?:x-(?:ms|wm)-journal-report[ \t]*:|content-identif(?:i)?er[ \t]*:[ \t]*exjournalreport[ \t]*\r?$)`)

// IsReport returns whether a message carries the reportMarker of a journal report.
func IsReport(b []byte) bool {
	for _, end := range []string{"\r\n\r\n", "\n\n"} {
		if i := bytes.Index(b, []byte(end)); i >= 0 {
			b = b[:i]
		}
	}
	return reportMarker.Match(b)
}
