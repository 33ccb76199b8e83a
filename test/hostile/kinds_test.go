//go:build hostile

package hostile

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
)

// large is what a slow reader leaves lying.
const large = 4 << 20

// prepare puts messages into the attackers' own mailbox.
func (a *attack) prepare() {
	a.t.Helper()
	want := netip.MustParseAddrPort(a.site.SMTP)
	snd, err := sender.New(sender.Config{Servers: []string{a.site.DNS}, TLS: &tls.Config{InsecureSkipVerify: true}, RequireTLS: true,
		Address: func(addr netip.Addr) netip.AddrPort {
			if addr == want.Addr() {
				return want
			}
			return netip.AddrPortFrom(addr, 1)
		}})
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := snd.Send(context.Background(), sender.Envelope{To: []string{a.own.Address}}, report.New(seed+1, 1, large)); err != nil {
		a.t.Fatal(err)
	}
}

// record is the beginning of a TLS ClientHello whose end does not come.
const record = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"

func garbage(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return string(bytes.ReplaceAll(b, []byte("\x16\x03"), []byte("xx")))
}

func guess() string {
	b := make([]byte, 16)
	rand.Read(b)
	return "mbx-" + hex.EncodeToString(b)
}

const ehlo = "EHLO attacker.example.net"

// upTo returns a run that goes as far as so many lines of a dialogue and then does
// something.
func upTo(door func(x *attacker) string, then func(x *attacker), dialogue ...string) func(*attacker) {
	return func(x *attacker) {
		if x.dial(door(x)) && x.talk(dialogue...) && then != nil {
			then(x)
		}
	}
}

func smtp(x *attacker) string  { return x.site.SMTP }
func pop3(x *attacker) string  { return x.site.POP3 }
func pop3s(x *attacker) string { return x.site.POP3S }

// inMessage returns a run that begins a message for a mailbox whose address leaked.
func inMessage(then func(x *attacker)) func(*attacker) {
	return func(x *attacker) {
		if x.dial(smtp(x)) && x.talk("220", ehlo, "250", "MAIL FROM:<>", "250", "RCPT TO:<"+x.known.Address+">", "250", "DATA", "354") {
			then(x)
		}
	}
}

const (
	mib     = 1 << 20
	oneLine = 250 * mib
)

// smtpKinds: the first three alone are more than all connections that there may be.
func smtpKinds() []*kind {
	return []*kind{
		{name: "SMTP, silent", workers: 500, every: 3 * time.Second, run: upTo(smtp, (*attacker).hold)},
		{name: "SMTP, silent after EHLO", workers: 500, every: 3 * time.Second, run: upTo(smtp, (*attacker).hold, "220", ehlo, "250")},
		{name: "SMTP, within a TLS handshake", workers: 500, every: 3 * time.Second,
			run: upTo(smtp, func(x *attacker) { x.say(record); x.hold() }, "220", ehlo, "250", "STARTTLS", "220")},
		{name: "SMTP, an octet every 2 s", workers: 50, every: 2 * time.Second, run: upTo(smtp, func(x *attacker) { x.drip(2 * time.Second) }, "220")},
		{name: "SMTP, replies not read", workers: 20, every: 2 * time.Second,
			run: upTo(smtp, func(x *attacker) { x.say(strings.Repeat("NOOP\r\n", 190)); x.pause(time.Hour) }, "220", ehlo, "250")},
		{name: "SMTP, a command of 250 MiB", workers: 2, every: 2 * time.Second, run: upTo(smtp, func(x *attacker) { x.pour("x", oneLine, 8*mib) }, "220")},
		{name: "SMTP, a line of 250 MiB", workers: 1, every: 2 * time.Second, run: inMessage(func(x *attacker) { x.pour("x", oneLine+mib, 8*mib) })},
		{name: "SMTP, a header without end", workers: 2, every: 2 * time.Second, run: inMessage(func(x *attacker) { x.pour("X-Header: x\r\n", oneLine+mib, mib) })},
		{name: "SMTP, a message too slow", workers: 20, every: 2 * time.Second, run: inMessage(func(x *attacker) { x.drip(3 * time.Second) })},
		{name: "SMTP, 100,000 recipients", workers: 2, every: time.Second,
			run: upTo(smtp, func(x *attacker) { x.pour("RCPT TO:<"+x.known.Address+">\r\n", 100_000*60, 4*mib) }, "220", ehlo, "250", "MAIL FROM:<>", "250")},
		{name: "SMTP, guesses", workers: 10, every: 500 * time.Millisecond, run: func(x *attacker) {
			if x.dial(smtp(x)) && x.talk("220", ehlo, "250", "MAIL FROM:<>", "250") {
				for range 10 {
					if !x.say("RCPT TO:<"+guess()+"@msgw.example.com>\r\n") || !x.heard("550") {
						return
					}
				}
			}
		}},
		{name: "SMTP, garbage", workers: 10, every: 500 * time.Millisecond, run: upTo(smtp, func(x *attacker) { x.say(garbage(8 << 10)); x.hold() })},
		{name: "SMTP, HTTP", workers: 10, every: 500 * time.Millisecond, run: upTo(smtp, func(x *attacker) { x.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n"); x.hold() })},
		{name: "SMTP, TLS from the start", workers: 10, every: 500 * time.Millisecond, run: upTo(smtp, func(x *attacker) { x.say(record + garbage(500)); x.hold() })},
		{name: "SMTP, come and go", workers: 20, every: 100 * time.Millisecond, run: upTo(smtp, nil)},
	}
}

func pop3Kinds() []*kind {
	return []*kind{
		{name: "POP3, silent", workers: 500, every: 3 * time.Second, run: upTo(pop3, (*attacker).hold)},
		{name: "POP3, within a TLS handshake", workers: 500, every: 3 * time.Second, run: upTo(pop3, func(x *attacker) { x.say(record); x.hold() }, "+OK", "STLS", "+OK")},
		{name: "POP3S, silent", workers: 500, every: 3 * time.Second, run: upTo(pop3s, (*attacker).hold)},
		{name: "POP3, an octet every 2 s", workers: 50, every: 2 * time.Second, run: upTo(pop3, func(x *attacker) { x.drip(2 * time.Second) }, "+OK")},
		{name: "POP3, a command of 250 MiB", workers: 2, every: 2 * time.Second, run: upTo(pop3, func(x *attacker) { x.pour("x", oneLine, 8*mib) }, "+OK")},
		{name: "POP3S, wrong passwords", workers: 20, every: 2 * time.Second, run: func(x *attacker) {
			if !x.dial(pop3s(x)) || !x.secure() || !x.heard("+OK") {
				return
			}
			for i := range 3 {
				user := x.known.ID
				if i == 1 {
					user = guess()
				}
				if !x.say("USER "+user+"\r\n") || !x.heard("+OK") || !x.say("PASS "+guess()+"\r\n") || !x.heard("-ERR") {
					return
				}
			}
		}},
		{name: "POP3S, a message not read", workers: 1, every: 2 * time.Second, run: func(x *attacker) {
			if x.dial(pop3s(x)) && x.secure() && x.talk("+OK", "USER "+x.own.ID, "+OK", "PASS "+x.own.Password, "+OK") {
				x.say(strings.Repeat("RETR 1\r\n", 100))
				x.pause(time.Hour)
			}
		}},
		{name: "POP3, garbage", workers: 10, every: 500 * time.Millisecond, run: upTo(pop3, func(x *attacker) { x.say(garbage(8 << 10)); x.hold() })},
		{name: "POP3S, garbage", workers: 10, every: 500 * time.Millisecond, run: upTo(pop3s, func(x *attacker) { x.say(garbage(8 << 10)); x.hold() })},
		{name: "POP3, HTTP", workers: 10, every: 500 * time.Millisecond, run: upTo(pop3, func(x *attacker) { x.say("GET / HTTP/1.1\r\nHost: x\r\n\r\n"); x.hold() })},
		{name: "POP3, come and go", workers: 20, every: 100 * time.Millisecond, run: upTo(pop3, nil)},
	}
}
