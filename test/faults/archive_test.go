//go:build faults

package faults

import (
	"context"
	"errors"
	"sync"
	"time"

	"msgw/internal/lab/archive"
)

// archives is an archive's profiles for one site: it goes round, fetches and deletes.
type archives struct {
	a    *appliance
	site int
	gate
}

func newArchives(a *appliance, site int, paused bool) *archives {
	x := &archives{a: a, site: site}
	if paused {
		x.pause()
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, b := range a.boxes {
		wg.Go(func() {
			for ctx.Err() == nil {
				x.enter()
				if ctx.Err() == nil {
					// A site that is gone, or goes, is part of the story.
					_, _ = x.session(ctx, b, all)
				}
				x.leave()
				select {
				case <-time.After(200 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	a.t.Cleanup(func() {
		cancel()
		x.open()
		wg.Wait()
	})
	return x
}

func all(string) bool     { return true }
func nothing(string) bool { return false }

// session fetches and deletes what waits in a mailbox, as far as it is wanted. It returns
// what was listed.
func (x *archives) session(ctx context.Context, b box, wanted func(uidl string) bool) (listed []string, err error) {
	m, led := x.a.sites[x.site], x.a.led
	c, err := archive.Dial(ctx, archive.Config{Address: m.addr + ":995", User: b.id, Password: b.password, TLS: x.a.tlsFor(x.site), Timeout: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.Login(); err != nil {
		return nil, err
	}
	messages, err := c.Messages()
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, msg := range messages {
		listed = append(listed, msg.UIDL)
		if !wanted(msg.UIDL) {
			continue
		}
		octets, err := c.Retrieve(msg)
		var refusal *archive.Error
		if errors.As(err, &refusal) {
			continue // it stays
		}
		if err != nil {
			return listed, err
		}
		if !led.fetch(m.name, b.id, msg.UIDL, octets) {
			continue
		}
		if err := c.Delete(msg); err != nil {
			return listed, err
		}
		gone = append(gone, msg.UIDL)
	}
	led.leave(gone)
	if err := c.Quit(); err != nil {
		return listed, err
	}
	led.left(gone)
	return listed, nil
}
