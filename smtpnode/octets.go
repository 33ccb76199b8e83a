package smtpnode

import (
	"bytes"
	"encoding/binary"
	"strings"

	"msgw/internal/journal"
)

// octets counts and classifies the octets of a message as they stream by.
type octets struct {
	most     int64 // octets that are taken; 0: any number
	total    int64
	bareLFs  int64
	received int // Received fields in the header
	flags    journal.Flags
	last     byte // octet before the next
	bareLF   bool // it was a bare LF

	header     []byte // the start of the message, until the header is complete
	headerDone bool
}

// maxHeader bounds how far the header is looked into.
const maxHeader = 64 << 10

func (o *octets) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if o.most > 0 && o.total+int64(len(p)) > o.most {
		return 0, errTooLarge
	}
	o.scanHeader(p)
	if o.flags&journal.EightBit == 0 && eightBit(p) {
		o.flags |= journal.EightBit
	}
	if o.bareLF && p[0] == '.' {
		o.flags |= journal.LFDot
	}
	// Every CR but one at the end, which the next Write judges, must be that of a CRLF.
	crs := bytes.Count(p, []byte{'\r'})
	if o.last == '\r' {
		crs++
	}
	if p[len(p)-1] == '\r' {
		crs--
	}
	o.bareLF = false
	for at := 0; ; {
		lf := bytes.IndexByte(p[at:], '\n')
		if lf < 0 {
			break
		}
		at += lf
		before := o.last
		if at > 0 {
			before = p[at-1]
		}
		at++
		if before == '\r' {
			crs--
			continue
		}
		o.bareLFs++
		o.flags |= journal.BareLF
		switch {
		case at == len(p):
			o.bareLF = true
		case p[at] == '.':
			o.flags |= journal.LFDot
		}
	}
	if crs != 0 {
		o.flags |= journal.BareCR
	}
	o.last = p[len(p)-1]
	o.flags &^= journal.NoFinalCRLF
	// Whether the octet before the LF was a CR is known from bareLF.
	if o.last != '\n' || o.bareLF {
		o.flags |= journal.NoFinalCRLF
	}
	o.total += int64(len(p))
	return len(p), nil
}

// eightBit says whether an octet of p is not ASCII.
func eightBit(p []byte) bool {
	const high = 0x8080808080808080
	for ; len(p) >= 32; p = p[32:] {
		if (binary.NativeEndian.Uint64(p)|binary.NativeEndian.Uint64(p[8:])|binary.NativeEndian.Uint64(p[16:])|binary.NativeEndian.Uint64(p[24:]))&high != 0 {
			return true
		}
	}
	for _, b := range p {
		if b >= 0x80 {
			return true
		}
	}
	return false
}

// result returns the flags of the whole message.
func (o *octets) result() journal.Flags {
	f := o.flags
	if o.last == '\r' {
		f |= journal.BareCR
	}
	if !o.headerDone {
		o.readHeader(o.header)
		f |= o.flags & journal.JournalReport
	}
	return f
}

// scanHeader reads the header once it is complete. It collects the header only
// if that takes several pieces.
func (o *octets) scanHeader(p []byte) {
	if o.headerDone {
		return
	}
	before := len(o.header)
	p = p[:min(len(p), maxHeader-before)]
	if before > 0 {
		o.header = append(o.header, p...)
		p = o.header
	}
	// Only the last octet of what was searched before may belong to the end.
	end := headerEnd(p, max(0, before-1))
	if end < 0 && len(p) < maxHeader {
		if before == 0 {
			o.header = bytes.Clone(p)
		}
		return
	}
	if end >= 0 {
		p = p[:end]
	}
	o.readHeader(p)
	o.header, o.headerDone = nil, true
}

// headerEnd returns where the empty line behind a header begins, or -1. Lines end at LF,
// with or without CR, each as it likes, and the first may be the empty one. What
// begins before from is not looked at.
func headerEnd(p []byte, from int) int {
	for at := from; ; {
		if at == 0 || p[at-1] == '\n' {
			if rest := p[at:]; bytes.HasPrefix(rest, []byte("\n")) || bytes.HasPrefix(rest, []byte("\r\n")) {
				return at
			}
		}
		lf := bytes.IndexByte(p[at:], '\n')
		if lf < 0 {
			return -1
		}
		at += lf + 1
	}
}

// readHeader counts Received fields, and recognises the journal reports of Exchange 2007
// and later, of Amazon WorkMail, and of Exchange 2003.
func (o *octets) readHeader(header []byte) {
	for line := range strings.Lines(string(header)) {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		switch strings.ToLower(strings.TrimRight(name, " \t")) {
		case "received":
			o.received++
		case "x-ms-journal-report", "x-wm-journal-report":
			o.flags |= journal.JournalReport
		case "content-identifier", "content-identifer": // the second is how older Citadel writes it
			if strings.EqualFold(strings.TrimSpace(value), "exjournalreport") {
				o.flags |= journal.JournalReport
			}
		}
	}
}
