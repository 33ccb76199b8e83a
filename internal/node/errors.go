package node

import (
	"crypto/rand"
	"encoding/hex"
)

// OperatorError is what the operator must fix before trying again; the program
// exits with code 2.
type OperatorError struct {
	Err  error
	Hint string // what to do
}

func (e *OperatorError) Error() string { return e.Err.Error() }
func (e *OperatorError) Unwrap() error { return e.Err }

// lostHint is for a node that lost what it must never lose. It cannot be started:
// it would vote twice, or serve what is no longer true.
const lostHint = "restore the whole state directory as it last was; a lost node cannot be replaced by a new one yet"

func operatorError(err error, hint string) error { return &OperatorError{err, hint} }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
