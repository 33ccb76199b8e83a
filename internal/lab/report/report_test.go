package report

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"regexp"
	"strings"
	"testing"
)

var kinds = map[string]func(seed uint64, i, size int) []byte{"Exchange Online": New, "Exchange": OnPremises, "Google": Google, "Postfix": Postfix}

func TestSizeAndIdentity(t *testing.T) {
	t.Parallel()
	for name, kind := range kinds {
		seen := map[string]bool{}
		for i := range 80 {
			size := 4000 + i*101
			msg := kind(1<<63+5, i, size)
			if len(msg) != size {
				t.Errorf("%s %d: %d octets, want %d", name, i, len(msg), size)
			}
			if !bytes.Equal(msg, kind(1<<63+5, i, size)) {
				t.Errorf("%s %d: not the same twice", name, i)
			}
			if seen[string(msg)] {
				t.Errorf("%s %d: seen before", name, i)
			}
			seen[string(msg)] = true
			if seed, n, ok := Identify(msg); !ok || seed != 1<<63+5 || n != i {
				t.Errorf("%s %d: identified as %x, %d, %v", name, i, seed, n, ok)
			}
			if bytes.Count(msg, []byte("\n")) != bytes.Count(msg, []byte("\r\n")) || !bytes.HasSuffix(msg, []byte("\r\n")) {
				t.Errorf("%s %d: lines that do not end with CRLF", name, i)
			}
			for line := range bytes.Lines(msg) {
				if len(line) > 200 {
					t.Errorf("%s %d: line of %d octets", name, i, len(line))
				}
			}
		}
		if a, b := kind(1, 1, 0), kind(2, 1, 0); bytes.Equal(a, b) {
			t.Errorf("%s: the seed makes no difference", name)
		}
		if n := len(kind(1, 1, 3<<20)); n != 3<<20 {
			t.Errorf("%s: %d octets", name, n)
		}
	}
}

func TestIdentifyOthers(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "Message-ID: <a@example.org>\r\n", "Message-ID: <msgw-lab.", "Message-ID: <msgw-lab.1@", "Message-ID: <msgw-lab.1.1", "Message-ID: <msgw-lab.g.1@x", "Message-ID: <msgw-lab.1.x@x"} {
		if _, _, ok := Identify([]byte(s)); ok {
			t.Errorf("%q has been identified", s)
		}
	}
}

// field is a line of the report's body, after the grammar of bb738122 and the
// extended field of bb331962.
var field = regexp.MustCompile(`^(Sender: \S+@\S+|Subject: .*|Message-Id: <\S+@\S+>|On-Behalf-Of: \S+@\S+|(To|Cc|Bcc|Recipient): \S+@[a-z.]+(, (Expanded|Forwarded): \S+@\S+)?)$`)

func TestReportForm(t *testing.T) {
	t.Parallel()
	forms := map[string]bool{}
	attachments := map[string]bool{}
	for _, kind := range []func(uint64, int, int) []byte{New, OnPremises} {
		for i := range 8 {
			msg, err := mail.ReadMessage(bytes.NewReader(kind(7, i, 20_000)))
			if err != nil {
				t.Fatal(err)
			}
			if v, ok := msg.Header["X-Ms-Journal-Report"]; !ok || v[0] != "" {
				t.Errorf("marker: %q", v)
			}
			parts := split(t, msg.Header.Get("Content-Type"), msg.Body, "multipart/mixed")
			if len(parts) != 2 || parts[0].kind != "text/plain" || parts[1].kind != "message/rfc822" {
				t.Fatalf("%d parts", len(parts))
			}
			body := strings.TrimSuffix(string(parts[0].body), "\r\n")
			for line := range strings.SplitSeq(body, "\r\n") {
				m := field.FindStringSubmatch(line)
				if m == nil {
					t.Errorf("line %q", line)
					continue
				}
				name, _, _ := strings.Cut(line, ":")
				forms[name+m[4]] = true
			}
			if !bytes.HasPrefix(parts[1].body, []byte("Received: from client.example.org ")) {
				t.Errorf("original cut: %.60q", parts[1].body)
			}
			inner, err := mail.ReadMessage(bytes.NewReader(parts[1].body))
			if err != nil {
				t.Fatal(err)
			}
			id := inner.Header.Get("Message-ID")
			if !strings.Contains(body, "Message-Id: "+id+"\r\n") || msg.Header.Get("X-MS-Exchange-Parent-Message-Id") != id {
				t.Errorf("report about another message than %s: %q", id, body)
			}
			inside := split(t, inner.Header.Get("Content-Type"), inner.Body, "multipart/mixed")
			if len(inside) != 2 {
				t.Fatalf("%d parts in the original", len(inside))
			}
			if raw, err := base64.StdEncoding.DecodeString(string(inside[1].body)); err != nil || len(raw) < 10_000 {
				t.Errorf("attachment of %d octets: %v", len(raw), err)
			} else {
				attachments[string(raw[:1000])] = true
			}
		}
	}
	if len(attachments) != 8 { // the two kinds are about the same messages
		t.Errorf("%d attachments in reports about 8 messages", len(attachments))
	}
	other := New(8, 0, 20_000)
	for a := range attachments {
		if bytes.Contains(other, []byte(base64.StdEncoding.EncodeToString([]byte(a)[:rawLine]))) {
			t.Error("the seed makes no difference to the attachment")
		}
	}
	for _, want := range []string{"Sender", "Subject", "Message-Id", "On-Behalf-Of", "To", "Cc", "Bcc", "Recipient", "ToExpanded", "CcForwarded"} {
		if !forms[want] {
			t.Errorf("no report has %s", want)
		}
	}
}

type part struct {
	kind string
	body []byte
}

func split(t *testing.T, contentType string, body io.Reader, want string) []part {
	t.Helper()
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != want {
		t.Fatalf("%q: %v", contentType, err)
	}
	var parts []part
	for r := multipart.NewReader(body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part{kind, b})
	}
}
