package node

import (
	"crypto/rand"
	"encoding/hex"
)

// OperatorError is what the operator must fix before trying again; the program
// exits with code 2. What may also pass by itself exits with code 1, so that whoever
// started the program tries again.
type OperatorError struct {
	Err     error
	Hint    string // what to do
	MayPass bool
}

func (e *OperatorError) Error() string { return e.Err.Error() }
func (e *OperatorError) Unwrap() error { return e.Err }

// lostHint is for a node that lost what it must never lose. It cannot be started:
// it would vote twice, or serve what is no longer true.
const lostHint = "restore the whole state directory as it last was, or let a new machine take the place of this node: `msgw invite --replace NAME` at a running one"

func operatorError(err error, hint string) error { return &OperatorError{Err: err, Hint: hint} }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
