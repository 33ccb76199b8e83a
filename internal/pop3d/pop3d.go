// Package pop3d is the archive's door: a POP3 server (RFC 1939) over maildrops
// that somebody else keeps.
//
// It promises:
//   - No password is asked for, or passed on, before TLS.
//   - A message is deleted only after QUIT was said, and QUIT is answered +OK only
//     after the maildrop made the deletion durable. Whatever else ends a session
//     deletes nothing. A message that could not be read is not deleted.
//   - A message that cannot be read to its authenticated end never gets its final
//     dot, and one of up to 128 KiB is not begun.
//   - What a message holds cannot end the response that carries it.
//   - Listing reads no message, and a session needs no memory that grows with the
//     size of a message or with what the client sends.
package pop3d

import (
	"context"
	"errors"
	"io"
)

// Errors of Maildrops.Login. They may be wrapped; any other error counts as
// ErrTemporary.
var (
	ErrCredentials = errors.New("unknown mailbox or wrong password")
	ErrInUse       = errors.New("maildrop in use")
	ErrTemporary   = errors.New("temporary failure")
)

// Maildrops opens maildrops. It is used by all sessions at the same time.
type Maildrops interface {
	// Login checks user and password and locks the maildrop. The user comes as the
	// client sent it, with or without "@zone". ctx ends when the server stops.
	//
	// Errors: ErrCredentials for an unknown mailbox and a wrong password alike,
	// ErrInUse, ErrTemporary.
	Login(ctx context.Context, user, password string) (Maildrop, error)
}

// Maildrop is one locked mailbox, used by one session: it is asked for one thing at a
// time, but a message may be read while another one is opened. Its messages are known
// by their index in Messages.
type Maildrop interface {
	// Messages lists what was there at login. It is called once, and does not
	// decrypt.
	Messages() []Message
	// Open reads message i as it came in. io.EOF means that the message was
	// authenticated to its end; any other error, io.ErrUnexpectedEOF included,
	// means that it was not.
	Open(ctx context.Context, i int) (io.ReadCloser, error)
	// Delete deletes the messages named, in ascending order. It is durable when it
	// returns nil.
	Delete(ctx context.Context, which []int) error
	// Close unlocks the maildrop. It is called once.
	Close()
}

// Message is what the listing tells of a message.
type Message struct {
	ID     string // its UIDL: 1 to 70 octets from '!' to '~', never used again (RFC 1939, section 7)
	Octets int64  // as function Octets has it
	LFDot  bool   // it holds a dot right after an LF that has no CR before it
}
