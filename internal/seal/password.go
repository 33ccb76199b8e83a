package seal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"unicode"
	"unicode/utf8"
)

// alphabet leaves out the characters that a shell or a quoted string treats
// specially: space, quotes, backslash, dollar and backtick.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#%&()*+,-./:;<=>?@[]^_{|}~"

// PasswordLength is the length of a generated password.
const PasswordLength = 32

// NewPassword returns 32 random characters, some 207 bits.
func NewPassword() string {
	b := make([]byte, PasswordLength)
	n := big.NewInt(int64(len(alphabet)))
	for i := range b {
		k, err := rand.Int(rand.Reader, n)
		if err != nil {
			panic(err) // crypto/rand.Reader does not fail
		}
		b[i] = alphabet[k.Int64()]
	}
	return string(b)
}

// Bounds of a password that a person chose.
const (
	MinPassword = 12  // characters
	MaxPassword = 200 // octets; a POP3 command line carries no more (RFC 2449 section 4)
)

// CheckPassword says why a chosen password cannot be used, or nil. Any printable
// character is allowed, spaces at the ends included.
func CheckPassword(p string) error {
	switch {
	case !utf8.ValidString(p):
		return errors.New("password: not valid UTF-8")
	case utf8.RuneCountInString(p) < MinPassword:
		return fmt.Errorf("password: %d characters, expected at least %d", utf8.RuneCountInString(p), MinPassword)
	case len(p) > MaxPassword:
		return fmt.Errorf("password: %d octets, expected at most %d", len(p), MaxPassword)
	}
	for _, r := range p {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("password: holds the character %U, expected printable characters", r)
		}
	}
	return nil
}
