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

func operatorError(err error, hint string) error { return &OperatorError{err, hint} }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
