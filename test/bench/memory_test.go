//go:build bench && peers

package bench

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var memory = flag.Bool("memory", false, "measure the memory of one site that takes 64 messages of 250 MiB at once, and nothing else; needs 20 GiB of disk")

const (
	largest     = 250 << 20 // octets of the largest message taken
	manySenders = 64
	memoryBound = 512 << 20
)

// TestMemory sends the largest messages from many senders at once: first slowly, each
// dropped in the middle, then as fast as they go, to the end.
func TestMemory(t *testing.T) {
	if !*memory {
		t.Skip("asked for with -memory")
	}
	a := newAppliance(storage(t, 20<<30), "one", "127.0.31", 1, 0)
	a.start(t)
	pid := a.sites[0].pid
	check := func(phase string) {
		peak, err := highWater(pid)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("memory: %s: most resident so far %d MiB, bound %d MiB\n", phase, peak>>20, memoryBound>>20)
		if peak > memoryBound {
			t.Errorf("%s: %d MiB resident, more than %d", phase, peak>>20, memoryBound>>20)
		}
	}
	check("idle")

	slow, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	var open atomic.Int64
	if n := a.giants(t, func(x *sender) error {
		open.Add(1)
		err := x.giant(slow, 64<<10, 200*time.Millisecond)
		if errors.Is(err, context.DeadlineExceeded) {
			return nil // as it should be
		}
		return fmt.Errorf("a slow sender got as far as: %w", err)
	}); n != 0 || open.Load() != manySenders {
		t.Errorf("%d slow senders were under way, %d were acknowledged", open.Load(), n)
	}
	check("slow senders, all cut off")
	a.take(t, 0, 0)

	began := time.Now()
	n := a.giants(t, func(x *sender) error { return x.giant(t.Context(), 1<<20, 0) })
	took := time.Since(began)
	check(fmt.Sprintf("fast senders, %d of %d messages stored in %.0f s, %.0f MiB/s", n, manySenders, took.Seconds(), float64(n)*largest/(1<<20)/took.Seconds()))
	if n == 0 {
		t.Error("no message was stored")
	}
	a.take(t, n, 0)
	check("after the archive deleted them")
}

// giants runs many senders at once and returns how many messages were acknowledged.
func (a *appliance) giants(t *testing.T, each func(*sender) error) (acknowledged int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range manySenders {
		wg.Go(func() {
			x := &sender{target: a.target, number: i}
			err := x.open(false)
			if err == nil {
				err = each(x)
				x.conn.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			acknowledged += x.acknowledged
			if err != nil {
				t.Errorf("sender %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	return acknowledged
}

// giant sends a message of the largest size, so many octets at a time, with a pause
// between. It stops in the middle when ctx ends.
func (s *sender) giant(ctx context.Context, chunk int, pause time.Duration) error {
	envelope := fmt.Sprintf("MAIL FROM:<journal@load.example.net> SIZE=%d\r\nRCPT TO:<%s>\r\nDATA\r\n", largest, s.to(s.number))
	if err := s.write([]byte(envelope)); err != nil {
		return err
	}
	for _, code := range []int{250, 250, 354} {
		if err := s.expect(code); err != nil {
			return err
		}
	}
	block := bytes.Repeat([]byte(strings.Repeat("x", 62)+"\r\n"), chunk/64)
	for range largest / chunk {
		if err := s.write(block); err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			s.conn.(*net.TCPConn).SetLinger(0)
			return ctx.Err()
		}
	}
	if err := s.command(".\r\n", 250); err != nil {
		return err
	}
	s.acknowledged++
	return nil
}
