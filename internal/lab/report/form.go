package report

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"
)

// lines joins s with CRLF, each ended.
func lines(s ...string) string { return strings.Join(s, "\r\n") + "\r\n" }

// A full line of base64 is 78 octets long, CRLF included, and stands for 57.
const (
	base64Line = 78
	rawLine    = 57
)

// original is the message that is journaled, with fill octets of filling: an
// attachment of full lines and what is left over in the text.
func (m *journaled) original(fill int) []byte {
	var b bytes.Buffer
	b.Grow(fill + 2048)
	boundary := "=_" + m.guid()
	b.WriteString(lines(
		"Received: from client.example.org (client.example.org [192.0.2.10])",
		"\tby mail.example.org with ESMTPSA id "+m.guid()[:8]+";",
		"\t"+m.date.Format(time.RFC1123Z),
		"From: "+m.from.String(),
		"To: "+list(m.to)))
	if len(m.cc) > 0 {
		b.WriteString(lines("Cc: " + list(m.cc)))
	}
	b.WriteString(lines(
		"Subject: "+m.subject,
		"Date: "+m.date.Format(time.RFC1123Z),
		"Message-ID: "+m.id(),
		"MIME-Version: 1.0",
		`Content-Type: multipart/mixed; boundary="`+boundary+`"`,
		"",
		"--"+boundary,
		"Content-Type: text/plain; charset=us-ascii",
		"",
		fmt.Sprintf("This is message %d of run %x.", m.i, m.seed),
		"Greetings, "+m.from.name+strings.Repeat(".", fill%base64Line),
		"",
		"--"+boundary,
		"Content-Type: application/octet-stream",
		"Content-Transfer-Encoding: base64",
		`Content-Disposition: attachment; filename="drawing.bin"`,
		""))
	var raw [rawLine]byte
	var text [base64Line]byte
	copy(text[base64Line-2:], "\r\n")
	for range fill / base64Line {
		m.rand.Read(raw[:])
		base64.StdEncoding.Encode(text[:], raw[:])
		b.Write(text[:])
	}
	b.WriteString(lines("", "--"+boundary+"--"))
	return b.Bytes()
}

func list(people []person) string {
	var s []string
	for _, p := range people {
		s = append(s, p.String())
	}
	return strings.Join(s, ",\r\n\t")
}

// envelope is the text of a report: who really got the message. Which of the forms
// of the grammar are met depends on the index.
func (m *journaled) envelope() string {
	s := lines("Sender: "+m.from.address, "Subject: "+m.subject, "Message-Id: "+m.id())
	if m.i%4 == 1 { // sent in somebody's name
		s += lines("On-Behalf-Of: " + m.person("example.org").address)
	}
	if m.i%4 == 3 { // from outside: how it was addressed cannot be known
		for _, p := range slices.Concat(m.to, m.cc) {
			s += lines("Recipient: " + p.address)
		}
		return s
	}
	for _, p := range m.to {
		s += lines("To: " + p.address)
	}
	for _, p := range m.cc {
		s += lines("Cc: " + p.address)
	}
	switch m.i % 4 {
	case 0:
		s += lines("Bcc: " + m.person("example.com").address)
	case 1:
		s += lines("To: " + m.person("example.org").address + ", Expanded: everybody@example.org")
	case 2:
		s += lines("Cc: " + m.person("example.org").address + ", Forwarded: former.colleague@example.org")
	}
	return s
}

// exchange is a report of Exchange, with the lines that only the service adds
// where online is set.
func (m *journaled) exchange(fill int, online bool) []byte {
	boundary, report := "_"+m.guid()+"_", m.guid()
	envelope := m.envelope()
	original := m.original(fill)
	var b bytes.Buffer
	b.Grow(len(original) + 2048)
	host := "edge.example.org"
	if online {
		host = "eur01.prod.mail.example.org"
	}
	b.WriteString(lines(
		"Received: from mbx01.example.org (192.0.2.20) by "+host,
		" (192.0.2.21) with Microsoft SMTP Server (version=TLS1_2,",
		" cipher=TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) id 15.20.9000.1; "+m.date.Format("Mon, 2 Jan"),
		m.date.Format(" 2006 15:04:05 -0700"),
		"From: "+m.from.String(),
		"To: "+list(m.to),
		"Subject: "+m.subject,
		"MIME-Version: 1.0",
		"Sender: <MicrosoftExchange329e71ec88ae4615bbc36ab6ce41109e@example.org>",
		"Message-ID: <"+report+"@journal.report.generator>",
		"Date: "+m.date.Format(time.RFC1123Z),
		"X-MS-Journal-Report:",
		"X-MS-Exchange-Parent-Message-Id: "+m.id(),
		"Auto-Submitted: auto-generated",
		"X-MS-Exchange-Generated-Message-Source: Journal Agent"))
	if online {
		b.WriteString(lines(
			"X-MS-PublicTrafficType: Email",
			"X-MS-TrafficTypeDiagnostic: "+strings.ToUpper(report[:8])+":JournalingReport",
			"X-OriginatorOrg: example.org"))
	}
	b.WriteString(lines(
		`Content-Type: multipart/mixed; boundary="`+boundary+`"`,
		"",
		"--"+boundary,
		`Content-Type: text/plain; charset="us-ascii"`,
		"Content-Transfer-Encoding: 7bit",
		"",
		envelope,
		"--"+boundary,
		"Content-Type: message/rfc822",
		""))
	b.Write(original)
	b.WriteString(lines("", "--"+boundary+"--"))
	return b.Bytes()
}

// google is the copy that Google Workspace makes for an archive.
func (m *journaled) google(fill int) []byte {
	head := lines(
		"Received: by 2002:a05:600c:4ed4:b0:3f1:0:1 with SMTP id "+strings.ReplaceAll(m.guid(), "-", "")[:20]+";",
		"        "+m.date.Format(time.RFC1123Z),
		"X-Received: by 2002:a05:600c:4ed4:b0:3f1:0:1 with SMTP id "+strings.ReplaceAll(m.guid(), "-", "")[:20]+";",
		"        "+m.date.Format(time.RFC1123Z),
		"X-Gm-Original-To: "+m.to[0].address,
		"Return-Path: <"+m.from.address+">")
	return append([]byte(head), m.original(fill)...)
}

// postfix is a blind copy: what the recipient gets, with nothing of the envelope.
func (m *journaled) postfix(fill int) []byte {
	head := lines(
		"Received: from mail.example.org (mail.example.org [192.0.2.30])",
		"\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))",
		"\tby relay.example.org (Postfix) with ESMTPS id 4"+strings.ToUpper(m.guid()[:8])+"z1",
		"\tfor <"+m.to[0].address+">; "+m.date.Format("Mon, _2 Jan 2006 15:04:05 -0700 (MST)"))
	return append([]byte(head), m.original(fill)...)
}
