package smtpnode

import (
	"bytes"
	"strings"

	"msgw/internal/journal"
)

// octets counts and classifies the octets of a message as they stream by.
type octets struct {
	total   int64
	bareLFs int64
	flags   journal.Flags
	last    byte // octet before the next
	bareLF  bool // it was a bare LF

	header     []byte // the start of the message, until the header is complete
	headerDone bool
}

// maxHeader bounds how far the marker of a journal report is looked for.
const maxHeader = 64 << 10

func (o *octets) Write(p []byte) (int, error) {
	o.scanHeader(p)
	for _, b := range p {
		switch {
		case b == '\n' && o.last != '\r':
			o.bareLFs++
			o.flags |= journal.BareLF
		case b != '\n' && o.last == '\r':
			o.flags |= journal.BareCR
		}
		if b >= 0x80 {
			o.flags |= journal.EightBit
		}
		if b == '.' && o.bareLF {
			o.flags |= journal.LFDot
		}
		o.bareLF = b == '\n' && o.last != '\r'
		o.last = b
	}
	if n := len(p); n > 0 {
		o.flags &^= journal.NoFinalCRLF
		// Whether the octet before the LF was a CR is known from bareLF.
		if o.last != '\n' || o.bareLF {
			o.flags |= journal.NoFinalCRLF
		}
	}
	o.total += int64(len(p))
	return len(p), nil
}

// result returns the flags of the whole message.
func (o *octets) result() journal.Flags {
	f := o.flags
	if o.last == '\r' {
		f |= journal.BareCR
	}
	if !o.headerDone {
		o.findReport(o.header)
		f |= o.flags & journal.JournalReport
	}
	return f
}

// scanHeader collects the header and looks for the marker once it is complete.
func (o *octets) scanHeader(p []byte) {
	if o.headerDone {
		return
	}
	o.header = append(o.header, p[:min(len(p), maxHeader-len(o.header))]...)
	end := bytes.Index(o.header, []byte("\r\n\r\n"))
	if i := bytes.Index(o.header, []byte("\n\n")); i >= 0 && (end < 0 || i < end) {
		end = i
	}
	if end < 0 && len(o.header) < maxHeader {
		return
	}
	if end >= 0 {
		o.header = o.header[:end]
	}
	o.findReport(o.header)
	o.header, o.headerDone = nil, true
}

// findReport recognises the envelope messages of Exchange 2007 and later, of
// Amazon WorkMail, and of Exchange 2003.
func (o *octets) findReport(header []byte) {
	for line := range strings.Lines(string(header)) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		switch strings.ToLower(strings.TrimRight(name, " \t")) {
		case "x-ms-journal-report", "x-wm-journal-report":
			o.flags |= journal.JournalReport
		case "content-identifier", "content-identifer": // the second is how older Citadel writes it
			if strings.EqualFold(strings.TrimSpace(value), "exjournalreport") {
				o.flags |= journal.JournalReport
			}
		}
	}
}
