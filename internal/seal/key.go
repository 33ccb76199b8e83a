// Package seal keeps mail and keys unreadable at rest.
//
// A mailbox owns one or more age key pairs (hybrid ML-KEM-768 and X25519). The
// public half seals messages on reception and needs no secret. The private half
// is stored only wrapped under the mailbox password: Argon2id derives a key
// encryption key, XChaCha20-Poly1305 seals the age identity under it, with the
// mailbox, the key id and the parameters as associated data. Unwrapping is the
// password check; nothing else derived from the password is stored.
//
// Whatever this package returns as an error names no password and no key.
package seal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sync/semaphore"
	"golang.org/x/text/unicode/norm"
)

// ErrPassword says that a password does not open a key.
var ErrPassword = errors.New("wrong password")

// KDF holds the Argon2id parameters of one wrap (RFC 9106 section 3.1).
type KDF struct {
	Time    uint32 `json:"t"`
	Memory  uint32 `json:"m"` // KiB
	Threads uint8  `json:"p"`
}

var (
	// GeneratedKDF is for passwords of 128 bits of entropy and more, which no
	// guessing reaches: it keeps thousands of logins a minute affordable.
	GeneratedKDF = KDF{Time: 1, Memory: 8 << 10, Threads: 1}
	// ChosenKDF is for passwords a person made up.
	ChosenKDF = KDF{Time: 3, Memory: 64 << 10, Threads: 1}
)

// maxKDF bounds what a stored wrap may make this process spend.
var maxKDF = KDF{Time: 16, Memory: 1 << 20, Threads: 16}

func (k KDF) valid() bool {
	return k.Time >= 1 && k.Time <= maxKDF.Time && k.Threads >= 1 && k.Threads <= maxKDF.Threads &&
		k.Memory >= 8*uint32(k.Threads) && k.Memory <= maxKDF.Memory
}

// Wrap is an age identity sealed under a password.
type Wrap struct {
	Version    int    `json:"version"` // 1
	KDF        KDF    `json:"kdf"`
	Salt       []byte `json:"salt"`  // 16 octets; equal in the wraps made together
	Nonce      []byte `json:"nonce"` // 24 octets
	Ciphertext []byte `json:"ciphertext"`
}

const (
	wrapVersion = 1
	saltSize    = 16
)

// KeyState says what a key is still good for.
type KeyState string

const (
	Active      KeyState = "active"       // seals new messages
	DecryptOnly KeyState = "decrypt-only" // opens messages sealed before a reset
)

// Key is a mailbox key as it is stored and replicated. It holds no secret in clear.
type Key struct {
	ID        string    `json:"id"` // 16 hex digits
	Recipient string    `json:"recipient"`
	State     KeyState  `json:"state"`
	Created   time.Time `json:"created"`
	Wrap      Wrap      `json:"wrap"`
}

// Identity opens what was sealed to one key.
type Identity struct {
	KeyID string
	age   *age.HybridIdentity
}

// NewKey makes a key pair for mailbox and wraps it under password.
func NewKey(ctx context.Context, d *Deriver, mailbox, password string, kdf KDF, now time.Time) (Key, error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return Key{}, fmt.Errorf("make mailbox key: %w", err)
	}
	var raw [8]byte
	rand.Read(raw[:])
	k := Key{ID: hex.EncodeToString(raw[:]), Recipient: id.Recipient().String(), State: Active, Created: now.UTC()}
	salt, kek, err := d.fresh(ctx, password, kdf)
	if err != nil {
		return Key{}, err
	}
	k.Wrap = wrap(mailbox, k.ID, id.String(), kdf, salt, kek)
	return k, nil
}

// Unlock opens every key of a mailbox that password opens and returns their
// identities. It fails with ErrPassword unless the active key is among them.
func Unlock(ctx context.Context, d *Deriver, mailbox, password string, keys []Key) ([]Identity, error) {
	active, err := activeKey(keys)
	if err != nil {
		return nil, err
	}
	kek, err := d.derive(ctx, password, active.Wrap.Salt, active.Wrap.KDF)
	if err != nil {
		return nil, err
	}
	var ids []Identity
	opened := false
	for _, k := range keys {
		// Keys wrapped under another password have another salt: they stay
		// locked, and cost no derivation.
		if string(k.Wrap.Salt) != string(active.Wrap.Salt) || k.Wrap.KDF != active.Wrap.KDF {
			continue
		}
		secret, err := unwrap(mailbox, k.ID, k.Wrap, kek)
		if err != nil {
			continue
		}
		id, err := age.ParseHybridIdentity(secret)
		if err != nil {
			return nil, fmt.Errorf("mailbox %s key %s: stored identity is not valid", mailbox, k.ID)
		}
		ids = append(ids, Identity{k.ID, id})
		opened = opened || k.ID == active.ID
	}
	if !opened {
		return nil, ErrPassword
	}
	return ids, nil
}

// Rewrap returns keys with those that old opens wrapped under password instead.
// Keys that old does not open are returned unchanged. Messages are not touched.
func Rewrap(ctx context.Context, d *Deriver, mailbox, old, password string, kdf KDF, keys []Key) ([]Key, error) {
	ids, err := Unlock(ctx, d, mailbox, old, keys)
	if err != nil {
		return nil, err
	}
	salt, kek, err := d.fresh(ctx, password, kdf)
	if err != nil {
		return nil, err
	}
	out := make([]Key, len(keys))
	copy(out, keys)
	for i := range out {
		for _, id := range ids {
			if id.KeyID == out[i].ID {
				out[i].Wrap = wrap(mailbox, out[i].ID, id.age.String(), kdf, salt, kek)
			}
		}
	}
	return out, nil
}

// Unlockable reports whether a login that opens the active key opens k too.
func Unlockable(keys []Key, keyID string) bool {
	active, err := activeKey(keys)
	if err != nil {
		return false
	}
	for _, k := range keys {
		if k.ID == keyID {
			return string(k.Wrap.Salt) == string(active.Wrap.Salt) && k.Wrap.KDF == active.Wrap.KDF
		}
	}
	return false
}

func activeKey(keys []Key) (Key, error) {
	for _, k := range keys {
		if k.State == Active {
			return k, nil
		}
	}
	return Key{}, errors.New("mailbox has no active key")
}

// associated binds a wrap to its place and parameters, so that it opens nowhere else.
func associated(mailbox, keyID string, version int, kdf KDF) []byte {
	b := []byte("msgw mailbox wrap\x00")
	b = append(append(b, mailbox...), 0)
	b = append(append(b, keyID...), 0)
	b = binary.BigEndian.AppendUint32(b, uint32(version))
	b = binary.BigEndian.AppendUint32(b, kdf.Time)
	b = binary.BigEndian.AppendUint32(b, kdf.Memory)
	return append(b, kdf.Threads)
}

func wrap(mailbox, keyID, secret string, kdf KDF, salt, kek []byte) Wrap {
	aead, err := chacha20poly1305.NewX(kek)
	if err != nil {
		panic(err) // only a key of the wrong length
	}
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	rand.Read(nonce)
	return Wrap{Version: wrapVersion, KDF: kdf, Salt: salt, Nonce: nonce,
		Ciphertext: aead.Seal(nil, nonce, []byte(secret), associated(mailbox, keyID, wrapVersion, kdf))}
}

func unwrap(mailbox, keyID string, w Wrap, kek []byte) (string, error) {
	if w.Version != wrapVersion || len(w.Nonce) != chacha20poly1305.NonceSizeX {
		return "", fmt.Errorf("mailbox %s key %s: wrap version %d is not known here", mailbox, keyID, w.Version)
	}
	aead, err := chacha20poly1305.NewX(kek)
	if err != nil {
		panic(err)
	}
	p, err := aead.Open(nil, w.Nonce, w.Ciphertext, associated(mailbox, keyID, w.Version, w.KDF))
	if err != nil {
		return "", ErrPassword
	}
	return string(p), nil
}

// Deriver runs Argon2id under a bound on the memory in use at one time.
type Deriver struct {
	memory int64 // KiB
	free   *semaphore.Weighted
	dummy  []byte // salt for mailboxes that do not exist
}

// NewDeriver allows derivations that together use at most memory KiB; one that
// asks for more waits until it is alone.
func NewDeriver(memory uint32) *Deriver {
	d := &Deriver{memory: int64(memory), free: semaphore.NewWeighted(int64(memory)), dummy: make([]byte, saltSize)}
	rand.Read(d.dummy)
	return d
}

// derive gives the key encryption key. It waits for memory until ctx ends.
func (d *Deriver) derive(ctx context.Context, password string, salt []byte, kdf KDF) ([]byte, error) {
	if !kdf.valid() {
		return nil, fmt.Errorf("stored password parameters are out of bounds: t=%d m=%d KiB p=%d", kdf.Time, kdf.Memory, kdf.Threads)
	}
	n := min(int64(kdf.Memory), d.memory)
	if err := d.free.Acquire(ctx, n); err != nil {
		return nil, err
	}
	defer d.free.Release(n)
	// NFC makes a password typed on different systems the same octets.
	return argon2.IDKey(norm.NFC.Bytes([]byte(password)), salt, kdf.Time, kdf.Memory, kdf.Threads, chacha20poly1305.KeySize), nil
}

func (d *Deriver) fresh(ctx context.Context, password string, kdf KDF) (salt, kek []byte, err error) {
	salt = make([]byte, saltSize)
	rand.Read(salt)
	kek, err = d.derive(ctx, password, salt, kdf)
	return salt, kek, err
}

// Decoy spends what a login with a generated password costs, so that an unknown
// mailbox answers as slowly as a wrong password.
func (d *Deriver) Decoy(ctx context.Context, password string) {
	_, _ = d.derive(ctx, password, d.dummy, GeneratedKDF) // the result is not wanted
}
