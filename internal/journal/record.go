package journal

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"
)

// ID names a message for life: 128 random bits, written as a GUID. It is the
// message's UIDL too.
type ID [16]byte

// NewID returns a fresh ID.
func NewID() ID {
	var id ID
	rand.Read(id[:])
	return id
}

// String returns the GUID form, 8-4-4-4-12 hex digits.
func (id ID) String() string {
	b := make([]byte, 0, 36)
	for i := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, id[i:i+1])
	}
	return string(b)
}

// ParseID reads what String writes.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		if _, err := hex.Decode(id[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:])); err == nil {
			return id, nil
		}
	}
	return ID{}, fmt.Errorf("message id %q: expected the form 01234567-89ab-cdef-0123-456789abcdef", s)
}

// Flags are facts about a message's octets, found at reception.
type Flags uint16

const (
	JournalReport Flags = 1 << iota // carries a journal report's marker in its header
	EightBit                        // holds octets above 127
	BareLF                          // holds LF not preceded by CR
	BareCR                          // holds CR not followed by LF
	LFDot                           // holds a bare LF followed by a dot
	NoFinalCRLF                     // does not end with CRLF
	bodyInFile                      // the sealed message lies in a file of its own
	AmbiguousDot                    // came by DATA with a lone dot between line ends that were not both CRLF
)

// Flags of a tombstone.
const (
	tombAborted Flags = 1 << iota // what it names was prepared and never listed
	tombEvicted                   // what it names was a bad copy; the message itself lives on
)

// Meta is what the journal says of a message without opening it.
type Meta struct {
	ID       ID
	Mailbox  string // mailbox id, at most 255 octets
	Key      string // id of the mailbox key it is sealed to, 16 hex digits
	Received time.Time
	Trace    int64 // octets of the trace block at the start of the plaintext
	Octets   int64 // octets of the message, as they came in
	BareLFs  int64 // LF octets without CR before them
	Sealed   int64 // octets of the sealed message; set by the journal
	SHA256   [32]byte
	Flags    Flags
}

// The format of a record is described octet by octet in DESIGN.md.
const (
	magic      = "msj1"
	version    = 1
	prefixSize = 40
	align      = 8

	kindMessage   = 1
	kindTombstone = 2
	kindCopied    = 3 // tombstones copied from elsewhere

	messageHeaderSize = 8 + 16 + 8 + 4 + 8 + 8 + 8 + 32 + 8 + 1 // and the mailbox id
	tombstoneSize     = 8 + 8 + 4                               // and the ids
	copiedSize        = 8 + 4                                   // and the ids with their times
	maxTombstones     = 4096                                    // ids in one record
	maxCopiedTombs    = 2048                                    // in a record of copied ones
	maxHeader         = tombstoneSize + 16*maxTombstones
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// prefix starts every record.
type prefix struct {
	kind    byte
	flags   Flags
	header  int    // octets of the header that follows
	body    int64  // octets of the body behind the header
	durable uint64 // octets of this segment known to be flushed when the record was written
	bodyCRC uint32
	// generation counts the processes that wrote to this journal; 0 in records of
	// before there were generations.
	generation uint32
}

// size is the room the record takes in its segment.
func (p prefix) size() int64 {
	n := int64(prefixSize) + int64(p.header) + p.body
	return (n + align - 1) / align * align
}

var (
	errNotRecord = errors.New("no record starts here")
	errCRC       = errors.New("checksum mismatch")
	errShort     = errors.New("record is cut short")
)

// appendRecord encodes a record, padding included.
func appendRecord(b []byte, p prefix, header, body []byte) []byte {
	start := len(b)
	p.header, p.body = len(header), int64(len(body))
	b = append(b, magic...)
	b = append(b, p.kind, version)
	b = binary.BigEndian.AppendUint16(b, uint16(p.flags))
	b = binary.BigEndian.AppendUint32(b, uint32(p.header))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	b = binary.BigEndian.AppendUint64(b, uint64(p.body))
	b = binary.BigEndian.AppendUint64(b, p.durable)
	b = binary.BigEndian.AppendUint32(b, p.generation)
	crc := crc32.Update(crc32.Checksum(b[start:], castagnoli), castagnoli, header)
	b = binary.BigEndian.AppendUint32(b, crc)
	b = append(b, header...)
	b = append(b, body...)
	return append(b, make([]byte, p.size()-int64(len(b)-start))...)
}

// parsePrefix reads the fixed part; the checksum is checked with the header.
func parsePrefix(b []byte) (prefix, error) {
	if len(b) < prefixSize || string(b[:4]) != magic || b[5] == 0 {
		return prefix{}, errNotRecord
	}
	if b[5] != version {
		return prefix{}, fmt.Errorf("record version %d: written by a newer msgw", b[5])
	}
	p := prefix{
		kind:    b[4],
		flags:   Flags(binary.BigEndian.Uint16(b[6:])),
		header:  int(binary.BigEndian.Uint32(b[8:])),
		bodyCRC: binary.BigEndian.Uint32(b[12:]),
		body:    int64(binary.BigEndian.Uint64(b[16:])),
		durable: binary.BigEndian.Uint64(b[24:]),

		generation: binary.BigEndian.Uint32(b[32:]),
	}
	if p.header > maxHeader || p.body < 0 || p.body > 1<<40 {
		return prefix{}, errNotRecord
	}
	return p, nil
}

// checkHeader verifies the checksum over prefix and header.
func checkHeader(pre, header []byte) error {
	crc := crc32.Update(crc32.Checksum(pre[:prefixSize-4], castagnoli), castagnoli, header)
	if crc != binary.BigEndian.Uint32(pre[prefixSize-4:]) {
		return errCRC
	}
	return nil
}

func messageHeader(seq uint64, m Meta) ([]byte, error) {
	key, err := hex.DecodeString(m.Key)
	if err != nil || len(key) != 8 || hex.EncodeToString(key) != m.Key { // it is read back in small letters
		return nil, fmt.Errorf("key id %q: expected 16 hex digits, small letters", m.Key)
	}
	if len(m.Mailbox) > 255 {
		return nil, fmt.Errorf("mailbox id of %d octets: expected at most 255", len(m.Mailbox))
	}
	if m.Trace < 0 || m.Trace > math.MaxUint32 || m.Octets < 0 || m.BareLFs < 0 || m.BareLFs > math.MaxUint32 {
		return nil, fmt.Errorf("message of %d octets, %d of trace and %d bare LFs cannot be told", m.Octets, m.Trace, m.BareLFs)
	}
	b := make([]byte, 0, messageHeaderSize+len(m.Mailbox))
	b = binary.BigEndian.AppendUint64(b, seq)
	b = append(b, m.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Received.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(m.Trace))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Octets))
	b = binary.BigEndian.AppendUint64(b, uint64(m.BareLFs))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Sealed))
	b = append(b, m.SHA256[:]...)
	b = append(b, key...)
	b = append(b, byte(len(m.Mailbox)))
	return append(b, m.Mailbox...), nil
}

func parseMessageHeader(b []byte, flags Flags) (seq uint64, m Meta, err error) {
	if len(b) < messageHeaderSize || len(b) != messageHeaderSize+int(b[messageHeaderSize-1]) {
		return 0, m, fmt.Errorf("message header of %d octets has the wrong length", len(b))
	}
	seq = binary.BigEndian.Uint64(b)
	copy(m.ID[:], b[8:24])
	m.Received = time.Unix(0, int64(binary.BigEndian.Uint64(b[24:]))).UTC()
	m.Trace = int64(binary.BigEndian.Uint32(b[32:]))
	m.Octets = int64(binary.BigEndian.Uint64(b[36:]))
	m.BareLFs = int64(binary.BigEndian.Uint64(b[44:]))
	m.Sealed = int64(binary.BigEndian.Uint64(b[52:]))
	if m.Octets < 0 || m.BareLFs < 0 || m.BareLFs > math.MaxUint32 || m.Sealed < 0 {
		return 0, m, fmt.Errorf("message of %d octets, %d bare LFs and %d sealed octets is not possible", m.Octets, m.BareLFs, m.Sealed)
	}
	copy(m.SHA256[:], b[60:92])
	m.Key = hex.EncodeToString(b[92:100])
	m.Mailbox = string(b[messageHeaderSize:])
	m.Flags = flags
	return seq, m, nil
}

func tombstoneHeader(seq uint64, at time.Time, ids []ID) []byte {
	b := make([]byte, 0, tombstoneSize+16*len(ids))
	b = binary.BigEndian.AppendUint64(b, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(ids)))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

func parseTombstoneHeader(b []byte) (seq uint64, at time.Time, ids []ID, err error) {
	if len(b) < tombstoneSize || len(b) != tombstoneSize+16*int(binary.BigEndian.Uint32(b[16:])) {
		return 0, at, nil, fmt.Errorf("tombstone header of %d octets has the wrong length", len(b))
	}
	for i := tombstoneSize; i < len(b); i += 16 {
		ids = append(ids, ID(b[i:i+16]))
	}
	return binary.BigEndian.Uint64(b), time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))).UTC(), ids, nil
}

// copiedHeader encodes tombstones of several times.
func copiedHeader(seq uint64, kept []keptTomb) []byte {
	b := make([]byte, 0, copiedSize+keptTombSize*len(kept))
	b = binary.BigEndian.AppendUint64(b, seq)
	b = binary.BigEndian.AppendUint32(b, uint32(len(kept)))
	for _, k := range kept {
		b = append(b, k.id[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(k.at.UnixNano()))
	}
	return b
}

func parseCopiedHeader(b []byte) (ids []ID, times []time.Time, err error) {
	if len(b) < copiedSize || len(b) != copiedSize+keptTombSize*int(binary.BigEndian.Uint32(b[8:])) {
		return nil, nil, fmt.Errorf("header of copied tombstones of %d octets has the wrong length", len(b))
	}
	for i := copiedSize; i < len(b); i += keptTombSize {
		ids = append(ids, ID(b[i:i+16]))
		times = append(times, time.Unix(0, int64(binary.BigEndian.Uint64(b[i+16:]))).UTC())
	}
	return ids, times, nil
}

// TraceBinding is the first line of the trace block at the start of a sealed
// message's plaintext. It binds the octets to the record: a message that was moved
// under another id or mailbox is seen when it is opened.
func TraceBinding(id ID, mailbox string) string {
	return bindingField + id.String() + " " + mailbox + "\r\n"
}

const bindingField = "X-Msgw-Id: "

// TraceBindingLen returns how many octets TraceBinding has for a mailbox.
func TraceBindingLen(mailbox string) int {
	return len(bindingField) + len("01234567-89ab-cdef-0123-456789abcdef") + len(" ") + len(mailbox) + len("\r\n")
}
