package journal

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"msgw/internal/disk"
)

// BenchmarkOpen starts with many waiting messages, with side files and without.
func BenchmarkOpen(b *testing.B) {
	const n, each = 1_000_000, 2000
	dir := b.TempDir()
	j, err := Open(dir, Options{CompactRate: -1})
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; i < n; i += each {
		ms := make([]Message, each)
		for k := range ms {
			id := NewID()
			ms[k] = Message{metaOf(id, fmt.Sprintf("mbx-%d", k%20)), j.NewBody(id)}
			ms[k].Body.Write(make([]byte, 100))
		}
		if err := j.Commit(ms...); err != nil {
			b.Fatal(err)
		}
	}
	j.Close()
	for _, sides := range []bool{true, false} {
		b.Run(fmt.Sprintf("side=%v", sides), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				if !sides {
					segments, err := (disk.OS{}).ReadDir(dir + "/" + j.origin)
					if err != nil {
						b.Fatal(err)
					}
					for _, s := range segments {
						if isSide(s.Name()) {
							os.Remove(dir + "/" + j.origin + "/" + s.Name())
						}
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&before)
				k, err := Open(dir, Options{CompactRate: -1})
				if err != nil {
					b.Fatal(err)
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/message")
				if len(k.buckets[0].entries) < n/512 {
					b.Fatal("messages are missing")
				}
				k.Close()
			}
		})
	}
}

// plain is a disk that reserves no room.
type plain struct{ disk.OS }

type plainFile struct{ disk.File }

func (plain) Create(name string) (disk.File, error) {
	f, err := disk.OS{}.Create(name)
	return plainFile{f}, err
}

func (plainFile) Allocate(int64) error { return errors.ErrUnsupported }

// BenchmarkCommit stores messages of 75 KB, into reserved room and without, and beside
// them what the disk does with one file that a single writer appends to.
func BenchmarkCommit(b *testing.B) {
	sealed := make([]byte, 75<<10)
	for _, senders := range []int{1, 8, 32} {
		for _, fs := range []disk.FS{disk.OS{}, plain{}} {
			b.Run(fmt.Sprintf("%T/senders=%d", fs, senders), func(b *testing.B) {
				j, err := Open(b.TempDir(), Options{FS: fs, CompactRate: -1})
				if err != nil {
					b.Fatal(err)
				}
				defer j.Close()
				b.SetBytes(int64(len(sealed)))
				b.SetParallelism((senders + 1) / 2)
				if senders == 1 {
					for b.Loop() {
						if err := store(j, NewID(), "mbx-1", sealed); err != nil {
							b.Fatal(err)
						}
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := store(j, NewID(), "mbx-1", sealed); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
	b.Run("append", func(b *testing.B) {
		f, err := disk.OS{}.Create(b.TempDir() + "/log")
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		b.SetBytes(int64(len(sealed)))
		for at := int64(0); b.Loop(); at += int64(len(sealed)) {
			if _, err := f.WriteAt(sealed, at); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkCommitBesideLarge says how long small messages take while messages of 150 MB
// come in one after the other, and while another file is written and flushed like them.
func BenchmarkCommitBesideLarge(b *testing.B) {
	const large = 150 << 20
	chunk := make([]byte, 64<<10)
	for _, beside := range []string{"nothing", "large", "file"} {
		b.Run(beside, func(b *testing.B) {
			dir := b.TempDir()
			j, err := Open(dir, Options{CompactRate: -1})
			if err != nil {
				b.Fatal(err)
			}
			defer j.Close()
			var stop atomic.Bool
			var wg sync.WaitGroup
			wg.Go(func() {
				for n := 0; !stop.Load(); n++ {
					switch beside {
					case "nothing":
						return
					case "large":
						id := NewID()
						body := j.NewBody(id)
						for range large / len(chunk) {
							if _, err := body.Write(chunk); err != nil {
								b.Error(err)
								return
							}
						}
						if err := errors.Join(j.Commit(Message{metaOf(id, "mbx-2"), body}), j.Delete(id)); err != nil {
							b.Error(err)
							return
						}
					case "file":
						name := fmt.Sprintf("%s/other%d", dir, n)
						f, err := disk.OS{}.Create(name)
						if err != nil {
							b.Error(err)
							return
						}
						for at := int64(0); at < large && err == nil; at += int64(len(chunk)) {
							_, err = f.WriteAt(chunk, at)
						}
						if err := errors.Join(err, f.Sync(), f.Close(), os.Remove(name)); err != nil {
							b.Error(err)
							return
						}
					}
				}
			})
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				if err := store(j, NewID(), "mbx-1", chunk); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			stop.Store(true)
			wg.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
		})
	}
}
