package shadow

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"msgw/internal/journal"
)

// kind says what a frame is. The numbers are on the wire; DESIGN.md lists them.
type kind byte

const (
	kindPut     kind = 1  // meta and octets of a small message
	kindBegin   kind = 2  // id of a large message, its chunks follow
	kindChunk   kind = 3  // octets of a large message
	kindCommit  kind = 4  // meta of a large message, all of whose chunks were sent
	kindCancel  kind = 5  // a large message is given up
	kindDrop    kind = 6  // ids that the owner deleted
	kindSummary kind = 7  // asks for the summary of what is held
	kindBucket  kind = 8  // asks for the ids of one bucket
	kindGraves  kind = 9  // asks for the ids deleted here
	kindForget  kind = 10 // ids of graves that the owner has heard of
	kindGet     kind = 11 // asks for a message
	kindReturn  kind = 12 // the owner is back: what was adopted is its own again
	kindPing    kind = 13
	kindDamaged kind = 14 // asks which copies are damaged

	kindDone kind = 64 // the request was done; the payload is its answer
	kindFail kind = 65 // it was not: a code and a text
	kindData kind = 66 // part of an answer; kindDone follows
)

// frame is one unit on the wire: 4 octets length of what follows, 1 kind, 4 request
// number, the payload. Numbers are big-endian.
type frame struct {
	kind    kind
	request uint32
	payload []byte
}

const (
	frameHeader = 9
	// maxPayload holds a small message with its meta, and bounds what a peer can make
	// this node keep for one frame.
	maxPayload = 1 << 20
	// chunkSize is how much of a large message goes into one frame.
	chunkSize = 256 << 10
)

var errFrame = errors.New("peer sent what is not a frame")

// readFrame reads one frame. The payload is valid until the next call if buf is
// passed again.
func readFrame(r *bufio.Reader, buf []byte) (frame, []byte, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, buf, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n < frameHeader-4 || n > maxPayload+frameHeader-4 {
		return frame{}, buf, fmt.Errorf("%w: length %d", errFrame, n)
	}
	size := int(n) - (frameHeader - 4)
	if cap(buf) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, buf, err
	}
	return frame{kind(h[4]), binary.BigEndian.Uint32(h[5:]), buf}, buf, nil
}

// appendFrame adds a frame whose payload is parts, one after the other.
func appendFrame(b []byte, k kind, request uint32, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(n+frameHeader-4))
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint32(b, request)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// code says why a request failed.
type code byte

const (
	codeConflict code = 1 // another message is held under the id
	codeFull     code = 2 // no room
	codeMissing  code = 3 // no such message
	codeDamaged  code = 4 // the octets are not what their meta says
	codeFailed   code = 5 // the journal stores nothing until a restart
	codeDeleted  code = 6 // it was deleted here, and the owner has not heard of it yet
	codeOther    code = 255
)

var (
	// ErrConflict says that the other site holds another message under an id.
	ErrConflict = errors.New("the other site holds another message under this id")
	// ErrLink says that there is no connection to the other site, or that it broke.
	ErrLink = errors.New("no link to the other site")
	// errRefused says that the other site answered, and has not done what it was asked.
	errRefused = errors.New("the other site refused")
)

// codes pairs what a holder's journal says with what goes over the wire. The first
// that fits is taken.
var codes = []struct {
	code code
	err  error
}{
	{codeConflict, ErrConflict},
	{codeDeleted, journal.ErrDeleted},
	{codeFull, journal.ErrDiskFull},
	{codeMissing, journal.ErrNotFound},
	{codeDamaged, journal.ErrDamaged},
	{codeFailed, journal.ErrFailed},
}

// maxText bounds the text of a refusal.
const maxText = 1000

func encodeError(err error) []byte {
	c := codeOther
	for _, e := range codes {
		if errors.Is(err, e.err) {
			c = e.code
			break
		}
	}
	text := err.Error()
	return append([]byte{byte(c)}, text[:min(len(text), maxText)]...)
}

func decodeError(payload []byte) error {
	if len(payload) == 0 {
		return fmt.Errorf("%w: a refusal without a code", errFrame)
	}
	text := payload[1:min(len(payload), 1+maxText)]
	for _, e := range codes {
		if e.code == code(payload[0]) {
			return fmt.Errorf("%w: %w (%s)", errRefused, e.err, text)
		}
	}
	return fmt.Errorf("%w: %s", errRefused, text)
}

// maxIDs bounds the ids in one frame.
const maxIDs = 4096

func encodeIDs(ids []journal.ID) []byte {
	b := make([]byte, 0, 16*len(ids))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

func decodeIDs(payload []byte) ([]journal.ID, error) {
	if len(payload)%16 != 0 || len(payload) > 16*maxIDs {
		return nil, fmt.Errorf("%w: ids of %d octets", errFrame, len(payload))
	}
	ids := make([]journal.ID, len(payload)/16)
	for i := range ids {
		copy(ids[i][:], payload[16*i:])
	}
	return ids, nil
}

// timedConn gives every read, and every piece of a write, a deadline of its own: what
// makes progress is not cut off, however much there is of it.
type timedConn struct {
	net.Conn
	read, write time.Duration
}

func (c timedConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.read)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c timedConn) Write(p []byte) (int, error) {
	for done := 0; ; {
		if err := c.SetWriteDeadline(time.Now().Add(c.write)); err != nil {
			return done, err
		}
		n, err := c.Conn.Write(p[done:min(len(p), done+writePiece)])
		if done += n; err != nil || done == len(p) {
			return done, err
		}
	}
}

const writePiece = 64 << 10
