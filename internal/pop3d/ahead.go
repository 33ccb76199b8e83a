package pop3d

import (
	"context"
	"fmt"
	"runtime/debug"
)

// ahead is the message that the client is expected to ask for next. It is opened while
// the one before is on its way to the client.
type ahead struct {
	*opened
	ready chan struct{} // closed when opened is set
}

// none is no message.
const none = -1

// get opens message i for RETR, or for TOP. A client that asked for two messages in
// sequence will ask for the next one: its first chunk is read while this one is sent.
func (s *session) get(work context.Context, i int, cut *top) *opened {
	if cut != nil {
		s.settle()
		return s.open(work, i, s.takeSpare(), cut)
	}
	o := s.takeAhead(i)
	if o == nil {
		o = s.open(work, i, s.takeSpare(), nil)
	}
	if next := i + 1; s.expected == i && next < len(s.list) && !s.deleted[next] {
		a := &ahead{ready: make(chan struct{})}
		buf := s.takeSpare()
		go func() {
			defer close(a.ready)
			defer func() {
				// A defect ends this message's answer, not the process with all its sessions.
				if p := recover(); p != nil {
					a.opened = &opened{i: next, err: fmt.Errorf("a defect of this program: %v", p)}
					s.log.Error("pop3 reading ahead", "panic", p, "stack", string(debug.Stack()))
				}
			}()
			a.opened = s.open(work, next, buf, nil)
		}()
		s.ahead = a
	}
	s.expected = i + 1
	return o
}

// settle waits for the message that is read ahead: the maildrop is asked for one thing
// at a time.
func (s *session) settle() {
	if s.ahead != nil {
		<-s.ahead.ready
	}
}

// takeAhead returns what was read ahead if that is message i, and drops it if not.
func (s *session) takeAhead(i int) *opened {
	s.settle()
	if s.ahead == nil {
		return nil
	}
	o := s.ahead.opened
	s.ahead = nil
	if o.i == i {
		return o
	}
	o.close()
	s.spare = o.buf
	return nil
}

// takeSpare returns a buffer that is not in use, or nil.
func (s *session) takeSpare() []byte {
	b := s.spare
	s.spare = nil
	return b
}
