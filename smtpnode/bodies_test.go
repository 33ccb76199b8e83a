package smtpnode

import (
	"sync"
	"sync/atomic"
	"testing"

	"msgw/internal/journal"
)

// countedBodies is a Store that counts the bodies that have not ended.
type countedBodies struct {
	Store
	open atomic.Int64
}

type countedBody struct {
	Body
	end func()
}

func (b countedBody) Discard() { b.end() }

func (s *countedBodies) NewBody(id journal.ID) Body {
	s.open.Add(1)
	return countedBody{s.Store.NewBody(id), sync.OnceFunc(func() { s.open.Add(-1) })}
}

// A message that fails as its copies are begun leaves none of them behind.
func TestEveryBodyEnds(t *testing.T) {
	t.Parallel()
	s := &countedBodies{}
	r := start(t, func(o *Options) { s.Store, o.Store = o.Store, s })
	r.dial().dialog(envelope + "C: RCPT TO:<badkey@z>\nS: 250\nC: DATA\nS: 354\nC: x\nC: .\nS: 451\nC: QUIT\nS: 221")
	if n := s.open.Load(); n != 0 {
		t.Errorf("%d bodies are left", n)
	}
}
