//go:build power

package power

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// sector is what a disk writes whole or not at all. File systems need it to be as large
// as their blocks: ext4 refuses to mount if the last commit block in its journal was torn.
const sector = 4096

// disk has a volatile write cache. What was written is in the cache until it is flushed,
// or written with force unit access; when the power is cut, some of what is in the cache
// has reached the medium and the rest has not, in any order.
type disk struct {
	size int64

	mu     sync.Mutex
	medium *os.File
	cache  map[int64][]version // by sector, oldest first
	now    uint64              // of the last write
	off    bool
	fuse   int // writes and flushes until trip is called; 0: none is counted
	trip   func()
	err    error // of the medium, the first

	writes, flushes atomic.Int64
}

// version is what a write put into a sector.
type version struct {
	write uint64 // which write it was
	data  []byte
}

func openDisk(path string) (*disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size()%sector != 0 {
		err = fmt.Errorf("%s: %d octets are not whole sectors", path, fi.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &disk{size: fi.Size(), medium: f, cache: map[int64][]version{}}, nil
}

// begin is called with d.mu held, before each write and flush; on is false if the power
// is off, and last is true if it goes with this request.
func (d *disk) begin() (on, last bool) {
	if d.off {
		return false, false
	}
	if d.fuse > 0 {
		if d.fuse--; d.fuse == 0 {
			d.off = true
			go d.trip()
			return false, true
		}
	}
	return true, false
}

// read fills p with what was last written at offset; false says that the power is off.
func (d *disk) read(p []byte, offset int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return false
	}
	_, err := d.medium.ReadAt(p, offset)
	d.fail(err)
	for at := 0; at < len(p); at += sector {
		if v := d.cache[(offset+int64(at))/sector]; v != nil {
			copy(p[at:], v[len(v)-1].data)
		}
	}
	return true
}

// write takes p, which is not to be changed any more, for offset. What the power goes
// with may be on the medium in part, like what is in the cache.
func (d *disk) write(p []byte, offset int64, durable bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	on, last := d.begin()
	if !on && !last {
		return false
	}
	d.writes.Add(1)
	d.now++
	for at := 0; at < len(p); at += sector {
		n, b := (offset+int64(at))/sector, p[at:at+sector]
		if durable && on {
			d.put(n, b)
			delete(d.cache, n) // older than this
		} else {
			d.cache[n] = append(d.cache[n], version{d.now, b})
		}
	}
	return on
}

// flush returns when all that was written is on the medium.
func (d *disk) flush() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if on, _ := d.begin(); !on {
		return false
	}
	d.flushes.Add(1)
	for n, v := range d.cache {
		d.put(n, v[len(v)-1].data)
	}
	clear(d.cache)
	return true
}

func (d *disk) put(n int64, b []byte) {
	_, err := d.medium.WriteAt(b, n*sector)
	d.fail(err)
}

func (d *disk) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// arm has trip called, and the power cut, when the n-th write or flush from now comes in.
func (d *disk) arm(n int, trip func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fuse, d.trip = n, trip
}

// cut switches the power off, if that has not happened yet: no request is answered any
// more.
func (d *disk) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off, d.fuse = true, 0
}

func (d *disk) on() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.off
}

// Ways in which a cache may have been emptied in part when the power went.
var ways = []struct {
	name  string
	share func(rng *rand.Rand) func(v version) bool // of what reaches the medium
}{
	{"nothing", func(*rand.Rand) func(version) bool { return func(version) bool { return false } }},
	{"half of the sectors", func(rng *rand.Rand) func(version) bool {
		return func(version) bool { return rng.IntN(2) == 0 }
	}},
	{"one sector in ten", func(rng *rand.Rand) func(version) bool {
		return func(version) bool { return rng.IntN(10) == 0 }
	}},
	{"all but one sector in ten", func(rng *rand.Rand) func(version) bool {
		return func(version) bool { return rng.IntN(10) != 0 }
	}},
	{"half of the requests", func(rng *rand.Rand) func(version) bool {
		salt := rng.Uint64()
		return func(v version) bool { return rand.NewPCG(salt, v.write).Uint64()%2 == 0 }
	}},
}

// lose decides by rng what of the cache has reached the medium, and closes it. The power
// has to be off.
func (d *disk) lose(rng *rand.Rand) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.off {
		return "", fmt.Errorf("the power is on")
	}
	way := ways[rng.IntN(len(ways))]
	reached := way.share(rng)
	kept, lost := 0, 0
	for _, n := range slices.Sorted(maps.Keys(d.cache)) {
		for _, v := range d.cache[n] { // a later one wins over an earlier one
			if reached(v) {
				d.put(n, v.data)
				kept++
			} else {
				lost++
			}
		}
	}
	d.fail(d.medium.Close())
	return fmt.Sprintf("%d writes and %d flushes; of what was not flushed %s survived: %d sectors, %d are lost",
		d.writes.Load(), d.flushes.Load(), way.name, kept, lost), d.err
}
