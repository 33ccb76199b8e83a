package seal

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"filippo.io/age"
)

// ErrLocked says that none of the identities at hand opens a sealed message.
var ErrLocked = errors.New("sealed to a key that this password does not open")

// Recipients seals messages to mailbox keys. It keeps the parsed form of those that it
// met, because parsing one costs as much as sealing to it. The zero value is ready; it
// may be used by several goroutines.
type Recipients struct {
	mu     sync.Mutex
	parsed map[string]*age.HybridRecipient
}

// maxParsed bounds what is kept: some 20 KB for each.
const maxParsed = 1024

// Writer returns a writer that seals what is written to it for recipient, an
// age1pq1 string, into dst (https://c2sp.org/age). The sealed message is complete
// only once Close returned nil.
func (rs *Recipients) Writer(dst io.Writer, recipient string) (io.WriteCloser, error) {
	r, err := rs.parse(recipient)
	if err != nil {
		return nil, fmt.Errorf("mailbox recipient: %w", err)
	}
	return age.Encrypt(dst, r)
}

func (rs *Recipients) parse(recipient string) (*age.HybridRecipient, error) {
	rs.mu.Lock()
	r := rs.parsed[recipient]
	rs.mu.Unlock()
	if r != nil {
		return r, nil
	}
	r, err := age.ParseHybridRecipient(recipient)
	if err != nil {
		return nil, err
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if len(rs.parsed) >= maxParsed || rs.parsed == nil {
		rs.parsed = map[string]*age.HybridRecipient{} // those in use are soon back
	}
	rs.parsed[recipient] = r
	return r, nil
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
