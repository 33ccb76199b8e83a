package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"

	"msgw/internal/journal"
	"msgw/raftstore"
)

// Contents is what a backup holds beside its messages.
type Contents struct {
	Head      Head
	State     *raftstore.State // the configuration; nobody else has it
	CAKey     []byte           // PKCS #8; nil: not in it
	Encrypted bool
	Summary   Summary
	List      [32]byte // SHA-256 of the list of all members, and so a name for the whole
}

// Read reads a backup to its end and checks all of it: the framing, every SHA-256, that
// the configuration is coherent and that its keys are keys. message is called with each
// message and may read its sealed octets; their SHA-256 is checked after it returned. It
// may be nil. Its errors are returned as they are.
//
// Errors: ErrBroken, which names what is wrong, if reading failed as well; ErrEncrypted;
// ErrIdentity.
func Read(r io.Reader, ids []Identity, message func(m journal.Meta, copied bool, sealed io.Reader) error) (*Contents, error) {
	plain, encrypted, err := decrypt(r, ids)
	if err != nil {
		return nil, err
	}
	in := &source{r: plain}
	b := &reader{in: in, tar: tar.NewReader(in), out: &Contents{Encrypted: encrypted}, seen: map[journal.ID]struct{}{}, message: message}
	if err := b.read(); err != nil {
		return nil, err
	}
	return b.out, nil
}

// source counts what is read, to tell an end from a cut.
type source struct {
	r io.Reader
	n int64
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	return n, err
}

type reader struct {
	in      *source
	tar     *tar.Reader
	out     *Contents
	members []member
	seen    map[journal.ID]struct{}
	message func(journal.Meta, bool, io.Reader) error
}

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrBroken, fmt.Errorf(format, args...))
}

func (b *reader) read() error {
	if err := b.readHead(); err != nil {
		return err
	}
	if err := b.readState(); err != nil {
		return err
	}
	for {
		h, err := b.next("the list of its members")
		if err != nil {
			return err
		}
		if h.Name == listName {
			return b.readList(h.Size)
		}
		if err := b.readMessage(h); err != nil {
			return err
		}
	}
}

// next goes to the next member.
func (b *reader) next(expected string) (*tar.Header, error) {
	h, err := b.tar.Next()
	switch {
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, broken("it is cut short: %s is missing", expected)
	case err != nil:
		return nil, broken("where %s should be: %w", expected, err)
	case h.Typeflag != tar.TypeReg || h.Format != tar.FormatUSTAR:
		return nil, broken("member %.100q is not a plain file", h.Name)
	}
	return h, nil
}

// small reads a member that is expected under a name, in memory.
func (b *reader) small(m member, limit int64) ([]byte, error) {
	h, err := b.next(m.name())
	if err != nil {
		return nil, err
	}
	if h.Name != m.name() {
		return nil, broken("%.100q stands where %s should be", h.Name, m.name())
	}
	return b.all(m, h.Size, limit)
}

// all reads the member at hand, whose size is stated.
func (b *reader) all(m member, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, broken("%s: %d octets, expected at most %d", m.name(), size, limit)
	}
	octets, err := io.ReadAll(b.tar) // grows with what is there, not with what is stated
	if err != nil {
		return nil, cut(m, err)
	}
	m.sum = sha256.Sum256(octets)
	b.members = append(b.members, m)
	return octets, nil
}

func cut(m member, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return broken("it is cut short in %s", m.name())
	}
	return broken("%s: %w", m.name(), err)
}

func (b *reader) readHead() error {
	octets, err := b.small(member{kind: headKind}, maxHead)
	if err != nil {
		return err
	}
	var f struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(octets, &f); err != nil {
		return broken("%s: %w", headName, err)
	}
	if f.Format != Format {
		return broken("%s: format %d, expected %d: it was made by another version of msgw", headName, f.Format, Format)
	}
	d := json.NewDecoder(bytes.NewReader(octets))
	d.DisallowUnknownFields()
	if err := d.Decode(&b.out.Head); err != nil {
		return broken("%s: %w", headName, err)
	}
	return nil
}

// readState reads the configuration, and the key of the CA if it is there.
func (b *reader) readState() error {
	octets, err := b.small(member{kind: configKind}, maxConfig)
	if err != nil {
		return err
	}
	s, err := raftstore.DecodeState(octets)
	if err != nil {
		return broken("%s: %w", configName, err)
	}
	head := b.out.Head
	if _, ok := s.Nodes[head.Node]; !ok || s.Cluster != head.Cluster || s.Zone.Name != head.Zone || s.Epoch != head.Epoch || s.Revision != head.Revision || s.Index != head.Index {
		return broken("%s is not the configuration that %s speaks of", configName, headName)
	}
	b.out.State, b.out.Summary.Mailboxes = s, len(s.Mailboxes)
	if head.CAKey {
		octets, err := b.small(member{kind: keyKind}, maxKey)
		if err != nil {
			return err
		}
		p, rest := pem.Decode(octets)
		if p == nil || p.Type != pemType || len(rest) > 0 {
			return broken("%s: not a key in PEM", keyName) // no cause: it could quote the key
		}
		if !b.out.Encrypted {
			return broken("%s: in a backup that is not encrypted", keyName)
		}
		b.out.CAKey = p.Bytes
	}
	if s.Signing.Clear != nil && !b.out.Encrypted {
		return broken("%s: the zone's keys in a backup that is not encrypted", configName)
	}
	if err := checkKeys(s, b.out.CAKey); err != nil {
		return broken("%s: %w", configName, err)
	}
	return nil
}

// readMessage reads the two members of a message, of which h is the first.
func (b *reader) readMessage(h *tar.Header) error {
	id, copied, err := parseMetaName(h.Name)
	if err != nil {
		return err
	}
	if _, twice := b.seen[id]; twice || !b.out.Head.Journal {
		return broken("%s is not expected in it", h.Name)
	}
	b.seen[id] = struct{}{}
	metaKind, bodyKind := messageKinds(copied)
	octets, err := b.all(member{kind: metaKind, id: id}, h.Size, maxMeta)
	if err != nil {
		return err
	}
	m, err := journal.ParseMeta(octets)
	if err == nil && m.ID != id {
		err = fmt.Errorf("it speaks of message %s", m.ID)
	}
	if err != nil {
		return broken("%s: %w", h.Name, err)
	}
	body := member{kind: bodyKind, id: id}
	if h, err = b.next(body.name()); err != nil {
		return err
	}
	if h.Name != body.name() || h.Size != m.Sealed || h.Size > maxSealed {
		return broken("%.100q of %d octets stands where %s of %d should be", h.Name, h.Size, body.name(), m.Sealed)
	}
	sum := sha256.New()
	sealed := &sealedOctets{r: io.TeeReader(b.tar, sum)}
	if b.message != nil {
		if err := b.message(m, copied, sealed); err != nil {
			if sealed.err != nil {
				return cut(body, sealed.err) // what the caller says follows from it
			}
			return err
		}
	}
	if _, err := io.Copy(io.Discard, sealed); err != nil {
		return cut(body, err)
	}
	if sum.Sum(body.sum[:0]); body.sum != m.SHA256 {
		return broken("message %s is damaged: its SHA-256 is not the one that %s%s states", id, strings.TrimSuffix(body.name(), bodySuffix), metaSuffix)
	}
	b.members = append(b.members, body)
	b.out.Summary.count(b.out.State, m, copied)
	return nil
}

// readList compares what was read with the list at the end, and makes sure that it is
// the end.
func (b *reader) readList(size int64) error {
	all, want := sha256.New(), int64(0)
	for _, m := range b.members {
		line := m.line()
		want += int64(len(line))
		if want > size {
			return broken("%s: %s is missing in it", listName, m.name())
		}
		have := make([]byte, len(line))
		if _, err := io.ReadFull(b.tar, have); err != nil {
			return broken("it is cut short in %s: %w", listName, err)
		}
		if string(have) != line {
			return broken("%s is damaged, or its line in %s: the SHA-256 is another", m.name(), listName)
		}
		all.Write(have)
	}
	if size != want {
		return broken("%s: it names members that are missing", listName)
	}
	all.Sum(b.out.List[:0])
	end := b.in.n + (512-size%512)%512 + 1024 // padding, and two blocks of zeros
	switch _, err := b.tar.Next(); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return broken("it is cut short at its end")
	case err != io.EOF:
		return broken("more follows behind %s", listName)
	}
	switch n, err := io.CopyN(io.Discard, b.in, 1); {
	case n > 0 || b.in.n > end:
		return broken("more follows behind its end")
	case err != io.EOF:
		return broken("its end: %w", err)
	case b.in.n < end:
		return broken("it is cut short at its end")
	}
	return nil
}

// sealedOctets reads a message and keeps why that failed.
type sealedOctets struct {
	r   io.Reader
	err error
}

func (s *sealedOctets) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
