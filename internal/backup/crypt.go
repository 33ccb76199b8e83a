package backup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// maxRecipients of one backup.
const maxRecipients = 16

// ParseRecipients reads the public halves of recovery keys, age1... or age1pq1..., as
// age-keygen prints them.
func ParseRecipients(texts []string) ([]age.Recipient, error) {
	if len(texts) > maxRecipients {
		return nil, fmt.Errorf("recipient: %d of them, expected at most %d", len(texts), maxRecipients)
	}
	var rs []age.Recipient
	pq := 0
	for _, s := range texts {
		switch {
		case strings.HasPrefix(strings.ToUpper(s), "AGE-SECRET-KEY-"):
			// Not repeated: it is the one thing that must not be shown.
			return nil, errors.New("recipient: this is a secret key, expected its public half, which begins with age1")
		case strings.HasPrefix(s, "age1pq1"):
			r, err := age.ParseHybridRecipient(s)
			if err != nil {
				return nil, fmt.Errorf("recipient %.20s...: not a recipient of age: %w", s, err)
			}
			rs, pq = append(rs, r), pq+1
		default:
			r, err := age.ParseX25519Recipient(s)
			if err != nil {
				return nil, fmt.Errorf("recipient %.70q: expected age1... or age1pq1..., as age-keygen prints it", s)
			}
			rs = append(rs, r)
		}
	}
	if pq > 0 && pq < len(rs) {
		return nil, errors.New("recipient: age1... and age1pq1... do not go together: the one would take from the other what it is there for")
	}
	return rs, nil
}

// Identity is the secret half of a recovery key.
type Identity = age.Identity

// maxIdentities bounds an identity file, in octets.
const maxIdentities = 1 << 20

// ParseIdentities reads a file of age: lines that begin with AGE-SECRET-KEY-, comments
// and empty lines. Its errors repeat nothing of it.
func ParseIdentities(r io.Reader) ([]Identity, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxIdentities+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("identity: %w", err)
	case len(b) > maxIdentities:
		return nil, fmt.Errorf("identity: more than %d octets", maxIdentities)
	}
	n := 0
	var ids []Identity
	for line := range strings.Lines(string(b)) {
		n++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		one, err := age.ParseIdentities(strings.NewReader(line))
		if err != nil {
			return nil, fmt.Errorf("identity: line %d is not what age-keygen prints, which begins with AGE-SECRET-KEY-", n)
		}
		ids = append(ids, one...)
	}
	if len(ids) == 0 {
		return nil, errors.New("identity: no line begins with AGE-SECRET-KEY-")
	}
	return ids, nil
}

const (
	ageIntro = "age-encryption.org/v1\n"
	// maxAgeHeader has room for maxRecipients.
	maxAgeHeader = 64 << 10
)

// decrypt returns the plain stream of r, which may be encrypted.
func decrypt(r io.Reader, ids []Identity) (plain io.Reader, encrypted bool, err error) {
	in := bufio.NewReaderSize(r, maxAgeHeader)
	head, err := in.Peek(maxAgeHeader)
	if err != nil && err != io.EOF {
		return nil, false, err
	}
	switch {
	case !bytes.HasPrefix(head, []byte(ageIntro)):
		return in, false, nil
	case len(ids) == 0:
		return nil, true, ErrEncrypted
	case !bytes.Contains(head, []byte("\n--- ")): // the last line of the header
		return nil, true, fmt.Errorf("%w: its encryption's header does not end within %d octets", ErrBroken, maxAgeHeader)
	}
	plain, err = age.Decrypt(in, ids...)
	var no *age.NoIdentityMatchError
	switch {
	case errors.As(err, &no):
		return nil, true, ErrIdentity
	case err != nil:
		return nil, true, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return plain, true, nil
}
