package raftstore

import (
	"sync"
	"testing"
	"time"
)

// A call that finds the store being closed is answered, whatever raft leaves undone.
func TestCloseAnswersCalls(t *testing.T) {
	t.Parallel()
	_, a := start(t)
	within(t, 10*time.Second, "it leads", func() bool { return a.store.Status().Quorum })
	s := a.store
	var calls sync.WaitGroup
	for range 100 {
		calls.Go(func() {
			for {
				if _, err := s.Confirm(); err != nil {
					return
				}
			}
		})
	}
	time.Sleep(tick)
	a.close()
	done := make(chan struct{})
	go func() { calls.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("a call was not answered")
	}
}
