//go:build faults

package faults

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"msgw/internal/admin"
	"msgw/internal/lab/sender"
)

// load plays mail servers: they find the sites by MX, and keep what is refused for now.
type load struct {
	a    *appliance
	s    [2]*sender.Sender // each asks another site first what the DNS says
	wg   sync.WaitGroup
	ends context.Context // nothing new is begun
	end  func()
	gate

	told    sync.Mutex
	refusal error // the last one
}

const senders = 6

func newLoad(a *appliance, paused bool) *load {
	a.t.Helper()
	l := &load{a: a}
	for i := range l.s {
		var err error
		l.s[i], err = sender.New(sender.Config{Servers: []string{a.sites[i].addr + ":53", a.sites[1-i].addr + ":53"}, Helo: "journal.example.net",
			TLS: a.tls, RequireTLS: true,
			Timeouts: sender.Timeouts{Query: 500 * time.Millisecond, Connect: 3 * time.Second, Reply: 5 * time.Second, Block: 10 * time.Second, Final: 60 * time.Second}})
		if err != nil {
			a.t.Fatal(err)
		}
	}
	if paused {
		l.pause()
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.ends, l.end = context.WithCancel(ctx)
	for k := range senders {
		l.wg.Go(func() {
			for l.ends.Err() == nil {
				l.send(ctx, k)
				time.Sleep(25 * time.Millisecond)
			}
		})
	}
	a.t.Cleanup(func() { // before the machines go
		cancel()
		l.end()
		l.open()
		l.wg.Wait()
	})
	return l
}

// send makes one message and sends it until it is taken.
func (l *load) send(ctx context.Context, k int) {
	b := l.a.boxes
	// Half of the senders never wait for a second copy; the last one writes to all.
	to := []box{b[k%2]}
	switch k {
	case 3, 4:
		to = []box{b[2]}
	case 5:
		to = []box{b[0], b[2]}
	}
	i := -1
	for ctx.Err() == nil {
		l.enter()
		if i < 0 {
			if l.ends.Err() != nil {
				l.leave()
				return
			}
			i = l.a.led.take()
		}
		to = l.try(ctx, l.s[k%2], i, to)
		l.leave()
		if len(to) == 0 {
			return
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// try sends a message once, to the first site that takes it, and returns the mailboxes
// that it is still to be sent to.
func (l *load) try(ctx context.Context, s *sender.Sender, i int, to []box) (left []box) {
	var env sender.Envelope
	for _, b := range to {
		env.To = append(env.To, b.address)
	}
	if i%2 == 1 { // as Exchange Online does
		env.Chunks = &sender.Chunks{Sizes: []int{8192}}
		if i%4 == 1 {
			env.Chunks = &sender.Chunks{Sizes: []int{100_000}, Pipelined: true, EmptyLast: true}
		}
	}
	res, err := s.Send(ctx, env, l.a.led.message(i))
	maybe := 0
	for _, e := range res.Attempts {
		if e.MaybeAccepted {
			maybe++
		}
	}
	l.a.led.tried(i, maybe)
	var taken []box
	strict := false
	for _, b := range to {
		if slices.Contains(res.Accepted, b.address) {
			taken, strict = append(taken, b), strict || b.strict
		} else {
			left = append(left, b)
		}
	}
	if len(taken) > 0 {
		host, _, _ := strings.Cut(res.Host, ".")
		l.a.led.ack(i, taken, host, res.IDs)
		if strict {
			l.lookFor(host, res.IDs)
		}
	}
	var se *sender.Error
	if err != nil && ctx.Err() == nil {
		if !errors.As(err, &se) || !se.Temporary && !se.MaybeAccepted {
			l.a.led.faultf("message %d was refused for good: %v", i, err)
			return nil
		}
		l.told.Lock()
		l.refusal = err
		l.told.Unlock()
	}
	return left
}

// lookFor asks the site that did not take strict messages for their copies, which have
// to be there already.
func (l *load) lookFor(host string, ids []string) {
	other := l.a.sites[0]
	if host == other.name {
		other = l.a.sites[1]
	}
	for _, id := range ids {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		m, err := other.admin().Message(ctx, id)
		cancel()
		var ae *admin.Error
		switch {
		case err == nil && !m.Copy:
			l.a.led.faultf("%s says that it owns %s, which %s took", other.name, id, host)
		case errors.As(err, &ae) && ae.Status == http.StatusNotFound:
			if !l.a.led.isLeaving(id) {
				l.a.led.faultf("strict message %s was acknowledged by %s, and %s has no copy", id, host, other.name)
			}
		case err != nil:
			continue // it died meanwhile, or stands still
		}
		l.a.led.mu.Lock()
		l.a.led.strict++
		l.a.led.mu.Unlock()
	}
}

// last returns the last refusal.
func (l *load) last() error {
	l.told.Lock()
	defer l.told.Unlock()
	return l.refusal
}

// gate lets many through, until the story pauses them.
type gate struct {
	mu     sync.RWMutex // held by who is through
	paused bool
}

func (g *gate) enter() { g.mu.RLock() }
func (g *gate) leave() { g.mu.RUnlock() }

// pause returns when nobody is through any more. It and open are for the story alone.
func (g *gate) pause() {
	if !g.paused {
		g.mu.Lock()
		g.paused = true
	}
}

func (g *gate) open() {
	if g.paused {
		g.paused = false
		g.mu.Unlock()
	}
}

// finish waits until all that was begun is acknowledged.
func (l *load) finish() {
	l.a.t.Helper()
	l.end()
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(90 * time.Second):
		l.a.t.Fatalf("senders are still refused: %v", l.last())
	}
}

// tlsFor is how to speak to a site.
func (a *appliance) tlsFor(site int) *tls.Config {
	c := a.tls.Clone()
	c.ServerName = fmt.Sprintf("%s.%s", a.sites[site].name, zone)
	return c
}
