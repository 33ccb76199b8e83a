package journal

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"msgw/internal/disk/disktest"
)

// Everything at once, on small segments; then what is left is what it should be, and so
// it is after a power cut.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		disk := disktest.New(rand.New(rand.NewPCG(seed, 1)))
		opt := Options{FS: disk, InlineMax: 300, SegmentSize: 5000, Reserve: 1, KeepGraves: true, CompactRate: 1 << 30}
		j, err := Open("journal", opt)
		if err != nil {
			t.Fatal(err)
		}
		m := newModel(seed)
		m.disk, m.j, m.opt = disk, j, opt
		var mu sync.Mutex
		ctx, cancel := context.WithCancel(t.Context())
		var readers, writers sync.WaitGroup
		readers.Go(func() {
			for ctx.Err() == nil {
				if err := j.Verify(ctx, func(_ Meta, err error) {
					if err != nil {
						t.Error(err)
					}
				}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				j.Waiting()
				j.Summary()
				time.Sleep(time.Millisecond)
			}
		})
		readers.Go(func() {
			for ctx.Err() == nil {
				for i, g := range j.Graves() {
					if i%3 > 0 {
						j.Forget(g.ID)
					}
				}
				j.List("mbx-1")
				time.Sleep(time.Millisecond)
			}
		})
		for w := range uint64(4) {
			rng := rand.New(rand.NewPCG(seed, w+10))
			writers.Go(func() {
				var mine []ID
				octets := map[ID][]byte{}
				body := func(id ID) *Body {
					b := j.NewBody(id)
					b.Write(octets[id])
					return b
				}
				for range 150 {
					id := NewID()
					octets[id] = text(rng, 1+rng.IntN(500))
					p, err := j.Prepare(Message{metaOf(id, "mbx-1"), body(id)})
					if err != nil {
						t.Error(err)
						return
					}
					if rng.IntN(4) == 0 {
						if err := p.Abort(); err != nil {
							t.Error(err)
						}
					} else {
						p.List()
						mine = append(mine, id)
					}
					if len(mine) == 0 {
						continue
					}
					k := rng.IntN(len(mine))
					id = mine[k]
					switch rng.IntN(5) {
					case 0, 1:
						var twice sync.WaitGroup
						for range 2 {
							twice.Go(func() {
								if err := j.Delete(id); err != nil {
									t.Error(err)
								}
							})
						}
						twice.Wait()
						mine = append(mine[:k], mine[k+1:]...)
					case 2:
						if err := j.Replace(id, body(id)); err != nil {
							t.Error(err)
						}
					case 3:
						meta, ok := j.Has(id)
						if err := j.Evict(id); err != nil || !ok {
							t.Error(ok, err)
						}
						if err := j.Restore(meta, body(id)); err != nil {
							t.Error(err)
						}
					case 4: // a copy comes while its message is deleted
						var race sync.WaitGroup
						race.Go(func() {
							if err := j.Replace(id, body(id)); err != nil && !errors.Is(err, ErrNotFound) {
								t.Error(err)
							}
						})
						race.Go(func() {
							if err := j.Delete(id); err != nil {
								t.Error(err)
							}
						})
						race.Wait()
						mine = append(mine[:k], mine[k+1:]...)
					}
					if rng.IntN(10) == 0 && len(mine) > 0 {
						id := mine[rng.IntN(len(mine))]
						if b, err := load(j, id); err != nil || !bytes.Equal(b, octets[id]) {
							t.Errorf("%s: %v", id, err)
						}
					}
				}
				mu.Lock()
				defer mu.Unlock()
				for _, id := range mine {
					m.want[id], m.sealed[id] = true, octets[id]
				}
			})
		}
		writers.Wait()
		cancel()
		readers.Wait()
		j.mu.Lock()
		busy := len(j.pending) + len(j.removing)
		j.mu.Unlock()
		if busy > 0 {
			t.Errorf("seed %d: %d ids are kept for nobody", seed, busy)
		}
		j.cancel()
		j.background.Wait()
		if err := m.check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		disk.Crash()
		j.Close()
		m.opt.CompactRate = -1 // the counts are checked
		if err := m.drain(); err != nil {
			t.Fatalf("seed %d: after a power cut: %v", seed, err)
		}
	}
}
