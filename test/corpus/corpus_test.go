package corpus

import (
	"bytes"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// octets are those of every message, made once; nobody changes them.
var octets = sync.OnceValue(func() map[string][]byte {
	all := map[string][]byte{}
	for _, m := range All() {
		all[m.Name] = m.Octets()
	}
	return all
})

// header returns the header of a message whose lines may end with LF alone.
func header(msg []byte) []byte {
	for _, end := range []string{"\r\n\r\n", "\r\n\n", "\n\n"} {
		if i := bytes.Index(msg, []byte(end)); i >= 0 {
			return msg[:i]
		}
	}
	return msg
}

var marker = regexp.MustCompile(`(?im)^(X-MS-Journal-Report:\s*|X-WM-Journal-Report: journal|Content-Identif?i?er: exjournalreport)\r?$`)

// lone counts LFs without CR before and CRs without LF behind.
func lone(b []byte) (lf, cr int) {
	pairs := bytes.Count(b, []byte("\r\n"))
	return bytes.Count(b, []byte("\n")) - pairs, bytes.Count(b, []byte("\r")) - pairs
}

// lfDot says whether a dot follows an LF that has no CR before it.
func lfDot(b []byte) bool {
	for i := 0; ; i++ {
		n := bytes.Index(b[i:], []byte("\n."))
		if n < 0 {
			return false
		}
		if i += n; i == 0 || b[i-1] != '\r' {
			return true
		}
	}
}

func ascii(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

func TestDeclaredProperties(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, m := range All() {
		if seen[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		seen[m.Name] = true
		b := octets()[m.Name]
		head := header(b)
		for _, p := range []struct {
			name           string
			declared, real bool
		}{
			{"Report", m.Report, marker.Match(head)},
			{"EightBit", m.EightBit, !ascii(b)},
			{"UTF8", m.UTF8, !ascii([]byte(m.From+string(head))) && utf8.Valid(head)},
			{"NeedsBDAT", m.NeedsBDAT, len(b) > 0 && !bytes.HasSuffix(b, []byte("\r\n"))},
			{"LFDot", m.LFDot, lfDot(b)},
		} {
			if p.declared != p.real {
				t.Errorf("%s: %s is %v, declared %v", m.Name, p.name, p.real, p.declared)
			}
		}
		lf, cr := lone(b)
		wantLF := m.LFDot || m.Name == "citadel" || strings.HasPrefix(m.Name, "bare-lf") || m.Name == "binary"
		wantCR := m.Name == "bare-cr" || m.Name == "cr-last" || m.Name == "binary"
		if lf > 0 != wantLF || cr > 0 != wantCR {
			t.Errorf("%s: %d bare LF, %d bare CR", m.Name, lf, cr)
		}
	}
}

// What each message is in the corpus for.
func TestEachIsWhatItsNameSays(t *testing.T) {
	t.Parallel()
	starts := func(s string) func([]byte) bool { return func(b []byte) bool { return bytes.HasPrefix(b, []byte(s)) } }
	ends := func(s string) func([]byte) bool { return func(b []byte) bool { return bytes.HasSuffix(b, []byte(s)) } }
	holds := func(all ...string) func([]byte) bool {
		return func(b []byte) bool {
			for _, s := range all {
				if !bytes.Contains(b, []byte(s)) {
					return false
				}
			}
			return true
		}
	}
	is := func(s string) func([]byte) bool { return func(b []byte) bool { return string(b) == s } }
	lines := func(atLeast ...int) func([]byte) bool {
		return func(b []byte) bool {
			have := map[int]bool{}
			for line := range bytes.SplitSeq(b, []byte("\r\n")) {
				have[len(line)] = true
			}
			for _, n := range atLeast {
				if !have[n] {
					return false
				}
			}
			return true
		}
	}
	long := func(n int) func([]byte) bool { return func(b []byte) bool { return len(b) == n } }
	all := func(checks ...func([]byte) bool) func([]byte) bool {
		return func(b []byte) bool {
			for _, ok := range checks {
				if !ok(b) {
					return false
				}
			}
			return true
		}
	}
	checks := map[string]func([]byte) bool{
		"exchange-online": holds("\r\nX-MS-Journal-Report:\r\n", "\r\nTo: ", "\r\nCc: ", "\r\nBcc: ", ", Expanded: ", ", Forwarded: ", "\r\nOn-Behalf-Of: ",
			"X-MS-Exchange-Generated-Message-Source: Journal Agent"),
		"exchange-online-null-sender": holds("\r\nX-MS-Journal-Report:\r\n", "\r\nRecipient: "),
		"exchange-onpremises":         all(holds("\r\nX-MS-Journal-Report:\r\n"), func(b []byte) bool { return !bytes.Contains(b, []byte("X-OriginatorOrg")) }),
		"exchange-2003":               holds("\r\nContent-Identifier: ExJournalReport\r\n", "\r\nRecipients:\r\n\"", "<smtp:"),
		"citadel":                     holds("\r\nContent-Identifer: ExJournalReport\r\n", "MIME-Version: 1.0\r\n\n--"),
		"amazon-workmail":             holds("\r\nX-WM-Journal-Report: journal\r\n"),
		"exchange-online-large":       all(long(30<<20), holds("\r\nX-MS-Journal-Report:\r\n")),
		"exchange-onpremises-large":   long(1 << 20),
		"google-workspace":            holds("\r\nX-Gm-Original-To: ", "X-Google-DKIM-Signature: "),
		"google-workspace-large":      all(long(1<<20), holds("\r\nX-Gm-Original-To: ")),
		"postfix-always-bcc":          holds("by mx.example.org (Postfix) with ESMTPS id "),
		"postfix-always-bcc-large":    all(long(1<<20), holds("(Postfix) with ESMTPS id ")),
		"latin1":                      all(holds("Gr\xfc\xdfe"), func(b []byte) bool { return !utf8.Valid(b) }),
		"utf8":                        all(holds("Gr\u00fc\u00dfe", "\U0001f3dd"), utf8.Valid),
		"smtputf8":                    all(holds("<j\u00fcrgen@example.org>", "<d\u00f6rte@example.com>"), utf8.Valid),
		"binary": func(b []byte) bool {
			for i := range 256 {
				if bytes.IndexByte(b, byte(i)) < 0 {
					return false
				}
			}
			return bytes.Contains(b, []byte("\x00\x00"))
		},
		"bare-lf":      holds("CRLF, and\nothers\nthat do not,\r\n"),
		"bare-lf-only": func(b []byte) bool { return bytes.IndexByte(b, '\r') < 0 },
		"bare-cr":      holds("one\rtwo\r\r", "\r\r\n.\r\r\n", "\r.\r", "\r\n.\rfive"),
		"lf-dot":       holds("\n.\n", "\n.\r\n", "\r\n.\n", "\n..\n", "\n.f"),
		"leading-dots": all(starts("."), holds("\r\n.\r\n..\r\n...\r\n.foo\r\n..bar\r\n. \r\n\r\n.\r\n"), ends("\r\n.\r\n")),
		"dot-first":    is(".\r\n..\r\n.\r\n"),
		"dot-last":     ends("\r\n."),
		"no-final-newline": func(b []byte) bool {
			return bytes.Contains(b, []byte("\r\n\r\n")) && !bytes.ContainsAny(b[len(b)-5:], "\r\n.")
		},
		"cr-last":         ends("text\r"),
		"empty-body":      func(b []byte) bool { return bytes.Index(b, []byte("\r\n\r\n")) == len(b)-4 },
		"header-only":     func(b []byte) bool { return len(b) > 0 && !bytes.Contains(b, []byte("\r\n\r\n")) },
		"crlf":            is("\r\n"),
		"empty":           is(""),
		"long-lines":      lines(2001, 2048, 4096, 998, 8191),
		"very-long-lines": lines(100_001, 65_536, 1<<20),
	}
	for _, m := range All() {
		ok := checks[m.Name]
		if ok == nil {
			t.Errorf("%s is not checked", m.Name)
			continue
		}
		if !ok(octets()[m.Name]) {
			t.Errorf("%s is not what it should be", m.Name)
		}
		delete(checks, m.Name)
	}
	for name := range checks {
		t.Errorf("%s is not in the corpus", name)
	}
	if _, ok := findFrom(""); !ok {
		t.Error("no message with the null sender")
	}
}

func findFrom(from string) (Message, bool) {
	for _, m := range All() {
		if m.From == from {
			return m, true
		}
	}
	return Message{}, false
}

func TestFilesAndReadme(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range All() {
		names[m.Name+".eml"] = true
		if !bytes.Contains(readme, []byte("`"+m.Name+"`")) {
			t.Errorf("README.md does not say what %s is", m.Name)
		}
	}
	entries, err := fs.ReadDir(files, "eml")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !names[e.Name()] {
			t.Errorf("%s is in no message", e.Name())
		}
	}
	attributes, err := os.ReadFile(".gitattributes")
	if err != nil || string(attributes) != "*.eml -text\n" {
		t.Errorf("line ends may be converted: %q, %v", attributes, err)
	}
}

// address finds what looks like an address; the names in all of them are reserved
// ones (RFC 2606), but for the one that Exchange gives to its reports.
var address = regexp.MustCompile(`@([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)`)

func TestNamesAreReserved(t *testing.T) {
	t.Parallel()
	for _, m := range All() {
		b := octets()[m.Name]
		b = b[:min(len(b), 64<<10)] // the rest of a large one is base64
		for _, found := range address.FindAllSubmatch(slices.Concat(b, []byte(m.From)), -1) {
			name := "." + string(found[1])
			if !strings.HasSuffix(name, ".example.org") && !strings.HasSuffix(name, ".example.com") && name != ".journal.report.generator" {
				t.Errorf("%s: %s", m.Name, found[0])
			}
		}
	}
}

// field is a line of a report's body (technet bb738122, On-Behalf-Of from bb331962).
var field = regexp.MustCompile(`(?i)^(Sender: \S+@\S+|Subject: .*|Message-ID: <\S+@\S+>|On-Behalf-Of: \S+@\S+|(To|Cc|Bcc|Recipient): \S+@[a-z.]+(, (Expanded|Forwarded): \S+@\S+)?)$`)

func TestReportsHoldTheirOriginal(t *testing.T) {
	t.Parallel()
	for _, m := range All() {
		b := octets()[m.Name]
		if !m.Report || len(b) > 2<<20 { // the largest is made as the other large one is
			continue
		}
		msg, err := mail.ReadMessage(bytes.NewReader(b))
		if err != nil {
			t.Errorf("%s: %v", m.Name, err)
			continue
		}
		text, original := unwrap(t, textproto.MIMEHeader(msg.Header), msg.Body)
		inner, err := mail.ReadMessage(bytes.NewReader(original))
		if err != nil {
			t.Errorf("%s: original: %v", m.Name, err)
			continue
		}
		id := inner.Header.Get("Message-ID")
		if id == "" || !strings.Contains(strings.ToLower(text), "message-id: "+strings.ToLower(id)) {
			t.Errorf("%s: about another message than %q", m.Name, id)
		}
		if m.Name == "exchange-2003" || m.Name == "citadel" {
			continue // their bodies have another form
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(text, "\r\n"), "\r\n") {
			if !field.MatchString(line) {
				t.Errorf("%s: line %q", m.Name, line)
			}
		}
	}
}

// unwrap returns the first text and the first message in a multipart.
func unwrap(t *testing.T, h textproto.MIMEHeader, body io.Reader) (text string, original []byte) {
	t.Helper()
	_, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	for r := multipart.NewReader(body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return text, original
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(kind, "multipart/") {
			text, _ = unwrap(t, p.Header, p)
			continue
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case kind == "text/plain" && text == "":
			text = string(b)
		case kind == "message/rfc822":
			original = b
		}
	}
}
