package journal

import (
	"encoding/binary"
	"fmt"
)

// metaForm is the first octet of a Meta in transit.
const metaForm = 1

// AppendMeta adds the binary form of m, by which one site tells it to another: an
// octet 1, the flags, and the header of a message record with number 0. Where the
// sealed octets lie on this disk is not told.
func AppendMeta(b []byte, m Meta) ([]byte, error) {
	h, err := messageHeader(0, m)
	if err != nil {
		return b, err
	}
	b = append(b, metaForm)
	b = binary.BigEndian.AppendUint16(b, uint16(m.Flags&^bodyInFile))
	return append(b, h...), nil
}

// ParseMeta reads what AppendMeta writes, which must be all of b.
func ParseMeta(b []byte) (Meta, error) {
	if len(b) < 3 || b[0] != metaForm {
		return Meta{}, fmt.Errorf("facts of a message in %d octets: not a form known here", len(b))
	}
	flags := Flags(binary.BigEndian.Uint16(b[1:]))
	seq, m, err := parseMessageHeader(b[3:], flags)
	if err == nil && (seq != 0 || flags&bodyInFile != 0) {
		err = fmt.Errorf("facts of a message hold those of a place on a disk")
	}
	if err != nil {
		return Meta{}, err
	}
	return m, nil
}
