package smtpnode

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"msgw/internal/journal"
)

// slowly says of msg what octets says, octet by octet, but for JournalReport.
func slowly(msg []byte) (bareLFs int64, flags journal.Flags) {
	at := func(i int) byte {
		if i < 0 || i >= len(msg) {
			return 0
		}
		return msg[i]
	}
	for i, b := range msg {
		bareLF := b == '\n' && at(i-1) != '\r'
		if bareLF {
			bareLFs++
			flags |= journal.BareLF
		}
		if bareLF && at(i+1) == '.' {
			flags |= journal.LFDot
		}
		if b == '\r' && at(i+1) != '\n' {
			flags |= journal.BareCR
		}
		if b >= 0x80 {
			flags |= journal.EightBit
		}
	}
	if len(msg) > 0 && !bytes.HasSuffix(msg, []byte("\r\n")) {
		flags |= journal.NoFinalCRLF
	}
	return bareLFs, flags
}

// sameOctets compares octets, given msg in pieces of a size, with slowly.
func sameOctets(t *testing.T, msg []byte, piece int) {
	t.Helper()
	o := &octets{}
	for rest := msg; len(rest) > 0; {
		n := min(len(rest), piece)
		if got, err := o.Write(rest[:n]); got != n || err != nil {
			t.Fatalf("%d, %v", got, err)
		}
		if n%3 == 0 {
			_, _ = o.Write(nil)
		}
		rest = rest[n:]
	}
	bareLFs, flags := slowly(msg)
	if got := o.result() &^ journal.JournalReport; got != flags || o.bareLFs != bareLFs || o.total != int64(len(msg)) {
		t.Fatalf("%.200q in pieces of %d: flags %b, %d bare LFs, %d octets; expected %b, %d, %d", msg, piece, got, o.bareLFs, o.total, flags, bareLFs, len(msg))
	}
}

// A header is found in whatever pieces it comes, and nothing behind it.
func TestReportInPieces(t *testing.T) {
	t.Parallel()
	const marker, long = "X-MS-Journal-Report:", "Subject: x\r\n"
	for msg, want := range map[string]bool{
		"A: b\r\n" + marker + "\r\n\r\nbody":                              true,
		"A: b\n" + marker + "\n\nbody":                                    true,
		marker + "\r\n\r\n":                                               true,
		marker:                                                            true, // all of the message
		"\r\n\r\n" + marker + "\r\n\r\n":                                  false,
		"A: b\r\n\r\n" + marker + "\r\n\r\n":                              false,
		"A: b\n\n" + marker + "\r\n\r\n":                                  false,
		"A: b\n\r\n" + marker + "\r\n\r\n":                                false,
		"\r\n" + marker + "\r\n\r\n":                                      false, // no header
		"\n" + marker + "\r\n\r\n":                                        false,
		"\r" + marker + "\r\n\r\n":                                        false, // a name that begins with CR
		"A: b\r\r\n" + marker + "\r\n\r\n":                                true,
		"A: b\r\n\r" + marker + "\r\n\r\n":                                false,
		"A: b\r\n\n" + marker + "\r\n\r\n":                                false, // the empty line of a bare LF
		strings.Repeat(long, 5000) + marker + "\r\n\r\n":                  true,
		strings.Repeat(long, maxHeader/len(long)+1) + marker + "\r\n\r\n": false,
	} {
		for _, piece := range []int{1, 2, 3, 5, 1000, 1 << 20} {
			o := &octets{}
			for rest := []byte(msg); len(rest) > 0; {
				n := min(len(rest), piece)
				_, _ = o.Write(rest[:n])
				rest = rest[n:]
			}
			if got := o.result()&journal.JournalReport != 0; got != want {
				t.Errorf("%.60q in pieces of %d: %v, expected %v", msg, piece, got, want)
			}
			if o.headerDone && o.header != nil {
				t.Error("the header is kept")
			}
		}
	}
}

// Runs that are looked at as a whole give what single octets give.
func TestOctetsAreWhatTheyAre(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	const few = "\r\n.a\x80\r\n\r\n"
	for range 20_000 {
		msg := make([]byte, r.IntN(100))
		for i := range msg {
			msg[i] = few[r.IntN(len(few))]
		}
		if r.IntN(2) == 0 { // long enough for words, and with little in it
			msg = append(bytes.Repeat([]byte("x"), r.IntN(70)), msg[:min(len(msg), 4)]...)
			msg = append(msg, bytes.Repeat([]byte("y"), r.IntN(70))...)
		}
		sameOctets(t, msg, 1+r.IntN(80))
	}
}

func FuzzOctets(f *testing.F) {
	for _, s := range []string{"", "a\r\n.\r\n", "\n.\r", "\r\r\n", "a\n.b\x80c", "\r"} {
		f.Add([]byte(s), byte(1))
	}
	f.Fuzz(func(t *testing.T, msg []byte, piece byte) { sameOctets(t, msg, 1+int(piece)) })
}
