package raftstore

import "sync"

// access lets many use raft at a time, or one have it alone. Waiting for it is waiting on
// a channel, which virtual time passes over; a mutex would hold it up.
type access struct {
	mu      sync.Mutex
	users   int
	shut    bool
	changed chan struct{} // closed and replaced when either has changed
}

func newAccess() *access { return &access{changed: make(chan struct{})} }

// until waits until ok, which is called with mu held and takes what it waits for.
func (a *access) until(ok func() bool) {
	for {
		a.mu.Lock()
		if ok() {
			a.mu.Unlock()
			return
		}
		changed := a.changed
		a.mu.Unlock()
		<-changed
	}
}

func (a *access) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

// RLock begins a use, RUnlock ends it.
func (a *access) RLock() {
	a.until(func() bool {
		if a.shut {
			return false
		}
		a.users++
		return true
	})
}

func (a *access) RUnlock() { a.change(func() { a.users-- }) }

// Lock keeps new users out and waits for those that there are, Unlock lets them in again.
func (a *access) Lock() {
	a.until(func() bool {
		if a.shut {
			return false
		}
		a.shut = true
		return true
	})
	a.until(func() bool { return a.users == 0 })
}

func (a *access) Unlock() { a.change(func() { a.shut = false }) }
