package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"

	"msgw/internal/disk/disktest"
	"msgw/internal/health"
	"msgw/internal/journal"
	"msgw/internal/shadow"
)

// host is a machine: a disk, and at times a process.
type host struct {
	name string
	site bool // else a witness
	w    *world
	disk *disktest.Disk

	mu      sync.Mutex
	process *process // nil while it is down
}

// process is one running node: what internal/node joins, without the wire.
type process struct {
	own, held *journal.Journal
	site      shadow.Site
	monitor   *health.Monitor
	began     time.Time
	cancel    func()
	wg        sync.WaitGroup

	mu   sync.Mutex
	dead bool
}

func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.dead
}

func (h *host) running() *process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.process
}

// The times that the sites are set to: shorter than the defaults, so that a history
// holds more.
const (
	adoptAfter     = 4 * time.Minute
	adoptConfirmed = time.Minute
	returnTime     = 40 * time.Second
	waitTime       = 30 * time.Second
	silentTime     = 10 * time.Second
)

func settings() shadow.Settings {
	return shadow.Settings{Times: shadow.Times{Silent: silentTime, Wait: waitTime, Return: returnTime}}
}

// start starts the host's process. It fails on a disk that fails.
func (h *host) start() error {
	p := &process{began: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	h.w.net.forget(h.name)
	p.monitor = health.New(health.Options{Prober: prober{h}, Targets: h.w.targets(h), Log: slog.New(slog.DiscardHandler)})
	var listening *listener
	if h.site {
		if err := h.openMail(p); err != nil {
			cancel()
			return err
		}
		listening = h.w.net.listen(h.name)
		p.wg.Go(func() { p.site.Shipper.Run(ctx) })
		p.wg.Go(func() { p.site.Holder.Run(ctx) })
		p.wg.Go(func() {
			if err := p.site.Holder.Serve(ctx, listening); err != nil && !errors.Is(err, net.ErrClosed) {
				h.w.fail("%s: serve: %v", h.name, err)
			}
		})
	}
	p.wg.Go(func() { p.monitor.Run(ctx) })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.process = p
	return nil
}

func (h *host) openMail(p *process) (err error) {
	fs := h.disk.Mount()
	log := h.w.log.With("host", h.name)
	for name, to := range map[string]**journal.Journal{"journal": &p.own, "shadow": &p.held} {
		if err := fs.MkdirAll(name); err != nil {
			return err
		}
		if *to, err = journal.Open(name, journal.Options{KeepGraves: true, FS: fs, Log: log.With("journal", name), Reserve: 1, SegmentSize: 300 << 10,
			InlineMax: 32 << 10, ScrubEvery: 10 * time.Minute, OnDamage: func(journal.Damage) {
				if s := p.site.Shipper; s != nil {
					s.Repair()
				}
			}}); err != nil {
			if p.own != nil {
				_ = p.own.Close() // it is the other error that counts
			}
			return err
		}
	}
	other := h.w.other(h)
	p.site.Shipper, err = shadow.Open(shadow.Options{Own: p.own, Dir: ".", FS: fs, Settings: settings, Log: log,
		Dial: func(ctx context.Context) (net.Conn, error) { return h.w.net.dial(ctx, h.name, other.name) }})
	if err == nil {
		p.site.Holder, err = shadow.OpenHolder(shadow.HolderOptions{Held: p.held, Dir: ".", FS: fs, Log: log,
			Silence: func() time.Duration { return adoptAfter }, Confirmed: func() time.Duration { return adoptConfirmed },
			Confirm: func() bool { return p.monitor.Gone(other.name) }})
	}
	if err != nil {
		_ = p.own.Close()
		_ = p.held.Close()
	}
	return err
}

// end is how a process ends.
type end int

const (
	stopped   end = iota // told to
	killed               // what it wrote is there
	unplugged            // what was not flushed may be lost
)

// stop ends the host's process.
func (h *host) stop(how end, silently bool) {
	h.mu.Lock()
	p := h.process
	h.process = nil
	h.mu.Unlock()
	if p == nil {
		return
	}
	p.mu.Lock()
	p.dead = true // from now on nobody hears what it answers
	p.mu.Unlock()
	if silently {
		h.w.net.vanish(h.name)
	}
	switch how {
	case killed:
		h.disk.Restart()
	case unplugged:
		h.disk.Crash()
	}
	h.w.net.mu.Lock()
	delete(h.w.net.listeners, h.name)
	h.w.net.mu.Unlock()
	if !silently {
		h.w.net.breakAll(func(w *wire) bool { return w.from == h.name || w.to == h.name })
	}
	p.cancel()
	p.wg.Wait()
	for _, j := range []*journal.Journal{p.own, p.held} {
		if j != nil {
			if err := j.Close(); err != nil && how == stopped {
				h.w.t.Logf("%s: close: %v", h.name, err) // on a disk that fails
			}
		}
	}
}

// prober looks at hosts over the simulated network.
type prober struct{ h *host }

func (p prober) reach(ctx context.Context, name string) (*process, error) {
	if name != p.h.name {
		if err := p.h.w.net.passes(ctx, p.h.name, name); err != nil {
			return nil, err
		}
	}
	q := p.h.w.hosts[name].running()
	if q == nil {
		return nil, syscall.ECONNREFUSED
	}
	return q, nil
}

func (p prober) Report(ctx context.Context, name string) (health.Report, error) {
	q, err := p.reach(ctx, name)
	if err != nil {
		return health.Report{}, err
	}
	r := health.Report{Accepting: true, Views: q.monitor.Views()}
	if q.own != nil {
		if err := errors.Join(q.own.Err(), q.own.Room(0)); err != nil {
			r.Accepting, r.Reason = false, err.Error()
		}
	}
	return r, nil
}

func (p prober) SMTP(ctx context.Context, address, _ string) error {
	_, err := p.reach(ctx, address)
	return err
}

func (p prober) DNS(ctx context.Context, address string) error {
	_, err := p.reach(ctx, address)
	return err
}

func (p prober) Greeting(ctx context.Context, address string) error { return p.SMTP(ctx, address, "") }
func (p prober) Anchor(context.Context, string) error               { return nil }

// octets is the content of message n.
func octets(n uint64, size int) []byte {
	var seed [32]byte
	copy(seed[:], fmt.Sprint("message ", n))
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}
