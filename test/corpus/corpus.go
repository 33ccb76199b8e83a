// Package corpus holds messages as journal senders send them, and messages made of
// the octets that mail programs get wrong. Every one of them has to leave the
// appliance octet for octet as it came in. README.md says where each form is from.
package corpus

import (
	"bytes"
	"embed"
	"fmt"

	"msgw/internal/lab/report"
)

// Message is one message and what is true of it.
type Message struct {
	Name      string
	From      string // envelope sender; empty for the null sender
	Report    bool   // a journal report: nothing may be prepended
	EightBit  bool   // octets above 127
	UTF8      bool   // UTF-8 in the header or in From: to be sent with SMTPUTF8
	NeedsBDAT bool   // not empty and does not end with CRLF: DATA cannot carry it
	LFDot     bool   // a dot right after an LF without CR: POP3 hands over all such LFs as CRLF

	octets func() []byte
}

// Octets returns the message. The caller may change it.
func (m Message) Octets() []byte { return m.octets() }

//go:embed eml/*.eml
var files embed.FS

// file completes m with the octets of the file of its name.
func file(m Message) Message {
	m.octets = func() []byte {
		b, err := files.ReadFile("eml/" + m.Name + ".eml")
		if err != nil {
			panic(fmt.Sprintf("corpus: %v", err)) // All names a file that is not embedded
		}
		return b
	}
	return m
}

const (
	ada    = "ada.berg@example.org"
	dora   = "dora.kern@example.com"
	system = "journal-ndr@example.org" // where a report goes that cannot be delivered
)

// All returns every message, reports first. The large ones are made on demand.
func All() []Message {
	return []Message{
		file(Message{Name: "exchange-online", From: system, Report: true}),
		file(Message{Name: "exchange-online-null-sender", Report: true}),
		file(Message{Name: "exchange-onpremises", From: system, Report: true}),
		file(Message{Name: "exchange-2003", From: system, Report: true}),
		file(Message{Name: "citadel", From: "grace.dahl@example.org", Report: true}),
		file(Message{Name: "amazon-workmail", From: "amazonjournaling@workmail.example.org", Report: true}),
		{Name: "exchange-online-large", Report: true, octets: func() []byte { return report.New(1, 30, 30<<20) }},
		{Name: "exchange-onpremises-large", Report: true, octets: func() []byte { return report.OnPremises(1, 1, 1<<20) }},

		file(Message{Name: "google-workspace", From: dora}),
		file(Message{Name: "postfix-always-bcc", From: dora}),
		{Name: "google-workspace-large", From: dora, octets: func() []byte { return report.Google(1, 1, 1<<20) }},
		{Name: "postfix-always-bcc-large", From: dora, octets: func() []byte { return report.Postfix(1, 1, 1<<20) }},

		file(Message{Name: "latin1", From: ada, EightBit: true}),
		file(Message{Name: "utf8", From: ada, EightBit: true}),
		file(Message{Name: "smtputf8", From: "j\u00fcrgen@example.org", EightBit: true, UTF8: true}),
		file(Message{Name: "binary", From: ada, EightBit: true}),

		file(Message{Name: "bare-lf", From: ada}),
		file(Message{Name: "bare-lf-only", From: ada, NeedsBDAT: true}),
		file(Message{Name: "bare-cr", From: ada}),
		file(Message{Name: "lf-dot", From: ada, LFDot: true}),
		file(Message{Name: "leading-dots", From: ada}),
		file(Message{Name: "dot-first", From: ada}),
		file(Message{Name: "dot-last", From: ada, NeedsBDAT: true}),
		file(Message{Name: "no-final-newline", From: ada, NeedsBDAT: true}),
		file(Message{Name: "cr-last", From: ada, NeedsBDAT: true}),
		file(Message{Name: "empty-body", From: ada}),
		file(Message{Name: "header-only", From: ada}),
		file(Message{Name: "crlf", From: ada}),
		file(Message{Name: "empty", From: ada}),
		{Name: "long-lines", From: ada, octets: func() []byte { return longLines(2001, 2048, 4096, 998, 8191) }},
		{Name: "very-long-lines", From: ada, octets: func() []byte { return longLines(100_001, 65_536, 1<<20) }},
	}
}

// longLines returns a message with a header field and lines of the given lengths,
// CRLF not counted. Each second line begins with a dot.
func longLines(lengths ...int) []byte {
	var b bytes.Buffer
	b.WriteString("From: Ada Berg <" + ada + ">\r\nSubject: long lines\r\n")
	fmt.Fprintf(&b, "Message-ID: <long-%d@corpus.example.org>\r\nX-Long: ", lengths[0])
	fill(&b, lengths[0]-len("X-Long: "))
	b.WriteString("\r\n\r\n")
	for i, n := range lengths {
		if i%2 == 1 {
			b.WriteByte('.')
			n--
		}
		fill(&b, n)
		b.WriteString("\r\n")
	}
	return b.Bytes()
}

// fill writes n octets no 26 of which are alike.
func fill(b *bytes.Buffer, n int) {
	for i := range n {
		b.WriteByte('a' + byte(i%26))
	}
}
