package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"filippo.io/age"

	"msgw/internal/journal"
	"msgw/raftstore"
)

// Options of a Writer.
type Options struct {
	Node    string // at which the backup is made
	Version string // of msgw
	Made    time.Time
	// Recipients are those who can read the backup; none: it is not encrypted.
	Recipients []age.Recipient
	// CAKey is the key of the cluster's CA, PKCS #8, or nil. It goes into an encrypted
	// backup only.
	CAKey   []byte
	Journal bool // Message will be called
}

// Writer writes one backup. It is used by one goroutine.
type Writer struct {
	out     *bufio.Writer
	seal    io.WriteCloser // nil: not encrypted
	tar     *tar.Writer
	opt     Options
	state   *raftstore.State
	members []member
	seen    map[journal.ID]struct{}
	sum     Summary
	err     error // what went wrong first; nothing is written after it
}

// NewWriter begins a backup of state on w. Nothing is whole until Close returned nil.
func NewWriter(w io.Writer, state *raftstore.State, opt Options) (*Writer, error) {
	if opt.CAKey != nil && len(opt.Recipients) == 0 {
		return nil, errors.New("the CA's key goes into an encrypted backup only")
	}
	if state.Signing.Clear != nil && len(opt.Recipients) == 0 {
		return nil, errors.New("the zone's keys go into an encrypted backup only")
	}
	b := &Writer{out: bufio.NewWriterSize(w, 64<<10), opt: opt, state: state, seen: map[journal.ID]struct{}{}, sum: Summary{Mailboxes: len(state.Mailboxes)}}
	plain := io.Writer(b.out)
	if len(opt.Recipients) > 0 {
		var err error
		if b.seal, err = age.Encrypt(b.out, opt.Recipients...); err != nil {
			return nil, fmt.Errorf("encrypt the backup: %w", err)
		}
		plain = b.seal
	}
	b.tar = tar.NewWriter(plain)
	head, err := json.MarshalIndent(Head{Format: Format, Made: opt.Made.UTC(), By: opt.Version, Cluster: state.Cluster, Node: opt.Node, Zone: state.Zone.Name,
		Epoch: state.Epoch, Revision: state.Revision, Index: state.Index, CAKey: opt.CAKey != nil, Journal: opt.Journal}, "", "  ")
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(state)
	if err != nil {
		return nil, err
	}
	if len(config) >= maxConfig {
		return nil, fmt.Errorf("the configuration has %d octets, expected less than %d", len(config), maxConfig)
	}
	b.add(member{kind: headKind}, append(head, '\n'))
	b.add(member{kind: configKind}, append(config, '\n'))
	if opt.CAKey != nil {
		b.add(member{kind: keyKind}, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: opt.CAKey}))
	}
	return b, b.err
}

const pemType = "PRIVATE KEY"

// Has says whether a message is in the backup already.
func (b *Writer) Has(id journal.ID) bool {
	_, ok := b.seen[id]
	return ok
}

// Message adds a message. sealed gives the octets that m states; others are an error,
// after which the backup cannot be finished. copied says that it is the copy of one that
// the other site took.
func (b *Writer) Message(m journal.Meta, copied bool, sealed io.Reader) error {
	switch {
	case !b.opt.Journal:
		b.fail(errors.New("the backup was begun without messages"))
	case b.Has(m.ID):
		b.fail(fmt.Errorf("message %s is in the backup already", m.ID))
	case m.Sealed > maxSealed:
		b.fail(fmt.Errorf("message %s has %d octets, expected at most %d", m.ID, m.Sealed, int64(maxSealed)))
	}
	meta, err := journal.AppendMeta(nil, m)
	b.fail(err)
	metaKind, bodyKind := messageKinds(copied)
	b.add(member{kind: metaKind, id: m.ID}, meta)
	sum := b.stream(member{kind: bodyKind, id: m.ID}, m.Sealed, sealed)
	if b.err == nil && sum != m.SHA256 {
		b.fail(fmt.Errorf("message %s: its octets changed while they were read", m.ID))
	}
	if b.err == nil {
		b.seen[m.ID] = struct{}{}
		b.sum.count(b.state, m, copied)
	}
	return b.err
}

// Close ends the backup and says what it holds. It does not close the writer below.
func (b *Writer) Close() (Summary, error) {
	size := int64(0)
	for _, m := range b.members {
		size += int64(len(m.line()))
	}
	b.header(listName, size)
	for _, m := range b.members {
		if b.err == nil {
			_, err := io.WriteString(b.tar, m.line())
			b.fail(err)
		}
	}
	for _, end := range []func() error{b.tar.Close, b.endEncryption, b.out.Flush} {
		if b.err == nil {
			b.fail(end())
		}
	}
	if b.err != nil {
		return Summary{}, b.err
	}
	b.fail(errors.New("the backup was finished"))
	return b.sum, nil
}

func (b *Writer) endEncryption() error {
	if b.seal == nil {
		return nil
	}
	return b.seal.Close()
}

func (b *Writer) fail(err error) {
	if b.err == nil && err != nil {
		b.err = fmt.Errorf("backup: %w", err)
	}
}

func (b *Writer) add(m member, octets []byte) {
	b.stream(m, int64(len(octets)), bytes.NewReader(octets))
}

// stream writes a member of size octets, takes it into the list and returns its SHA-256.
func (b *Writer) stream(m member, size int64, octets io.Reader) [32]byte {
	b.header(m.name(), size)
	if b.err != nil {
		return [32]byte{}
	}
	h := sha256.New()
	n, err := io.Copy(b.tar, io.TeeReader(io.LimitReader(octets, size), h))
	if err == nil && n < size {
		err = fmt.Errorf("%s: %d octets, expected %d", m.name(), n, size)
	}
	b.fail(err)
	h.Sum(m.sum[:0])
	b.members = append(b.members, m)
	return m.sum
}

func (b *Writer) header(name string, size int64) {
	if b.err == nil {
		b.fail(b.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: b.opt.Made.Truncate(time.Second), Format: tar.FormatUSTAR}))
	}
}
