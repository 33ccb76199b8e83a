package seal

import (
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
)

// ErrLocked says that none of the identities at hand opens a sealed message.
var ErrLocked = errors.New("sealed to a key that this password does not open")

// Writer returns a writer that seals what is written to it for recipient, an
// age1pq1 string, into dst (https://c2sp.org/age). The sealed message is complete
// only once Close returned nil.
func Writer(dst io.Writer, recipient string) (io.WriteCloser, error) {
	r, err := age.ParseHybridRecipient(recipient)
	if err != nil {
		return nil, fmt.Errorf("mailbox recipient: %w", err)
	}
	return age.Encrypt(dst, r)
}

// Open opens a sealed message of size octets and returns its plaintext and the
// plaintext's size, which is authenticated before Open returns: a message that
// was cut short fails here. Damage elsewhere is an error of the ReadAt that meets
// it. ErrLocked means that no identity fits.
func Open(src io.ReaderAt, size int64, ids []Identity) (io.ReaderAt, int64, error) {
	if len(ids) == 0 {
		return nil, 0, ErrLocked
	}
	as := make([]age.Identity, len(ids))
	for i, id := range ids {
		as[i] = id.age
	}
	r, n, err := age.DecryptReaderAt(src, size, as...)
	var no *age.NoIdentityMatchError
	if errors.As(err, &no) {
		return nil, 0, ErrLocked
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open sealed message: %w", err)
	}
	return r, n, nil
}
