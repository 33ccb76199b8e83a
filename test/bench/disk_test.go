//go:build bench && peers

package bench

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk is the limit: a program that appends a message's octets to one file, and one
// flush makes all of them durable that came in while the last one ran.
type disk struct {
	dir     string
	encrypt bool
	g       *group
}

func newDisk(dir string, encrypt bool) *disk { return &disk{dir: dir, encrypt: encrypt} }

func (d *disk) start(t *testing.T) { d.g = newGroup(t, "disk") }

func (d *disk) load(t *testing.T, c cell, warm, measured time.Duration) *load {
	t.Helper()
	path := filepath.Join(d.dir, "records")
	report := runDisk(t, d.g, path, c.size, c.senders, d.encrypt, warm, measured)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{acknowledged: report.Records, inWindow: len(report.Waits), waits: report.Waits, flush: quantile(report.Flushes, 0.99)}
	if want := int64(report.Records) * int64(report.Record); info.Size() != want {
		l.faults = append(l.faults, fmt.Errorf("%d octets in the file instead of %d", info.Size(), want))
	}
	return l
}

func (d *disk) settle(*testing.T, int) {}

func (d *disk) take(t *testing.T, _, _ int) {
	if err := os.Remove(filepath.Join(d.dir, "records")); err != nil {
		t.Error(err)
	}
}

func (d *disk) group() *group { return d.g }

// diskReport is what the program says.
type diskReport struct {
	Records int             // written and flushed
	Record  int             // octets of each
	Waits   []time.Duration // of a record for its flush, inside the window
	Flushes []time.Duration // of all flushes inside the window
}

func runDisk(t *testing.T, g *group, path string, size, senders int, encrypt bool, warm, measured time.Duration) diskReport {
	t.Helper()
	cmd := self(t, "disk", path, strconv.Itoa(size), strconv.Itoa(senders), strconv.FormatBool(encrypt), warm.String(), measured.String())
	defer g.adopt(t, cmd)()
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var r diskReport
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		t.Fatalf("disk: %v", err)
	}
	return r
}

// flushTimes returns how long one flush of 4 KB takes while nothing else is written.
func flushTimes(t *testing.T, dir string) [2]float64 {
	t.Helper()
	path := filepath.Join(dir, "flushes")
	defer os.Remove(path)
	r := runDisk(t, newGroup(t, "flush"), path, 4<<10, 1, false, 0, 2*time.Second)
	return [2]float64{quantile(r.Flushes, 0.5), quantile(r.Flushes, 0.99)}
}

// appender is one file that many append to.
type appender struct {
	file *os.File

	mu      sync.Mutex
	buf     []byte
	waiting []chan error
	wake    chan struct{}
	flushes []time.Duration
}

func (a *appender) append(record []byte) error {
	done := make(chan error, 1)
	a.mu.Lock()
	a.buf = append(a.buf, record...)
	a.waiting = append(a.waiting, done)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return <-done
}

// commit writes and flushes until wake is closed.
func (a *appender) commit() {
	var spare []byte
	for range a.wake {
		a.mu.Lock()
		buf, waiting := a.buf, a.waiting
		a.buf, a.waiting = spare[:0], nil
		a.mu.Unlock()
		spare = buf
		if len(waiting) == 0 {
			continue
		}
		_, err := a.file.Write(buf)
		start := time.Now()
		if err == nil {
			err = unix.Fdatasync(int(a.file.Fd()))
		}
		a.flushes = append(a.flushes, time.Since(start))
		for _, w := range waiting {
			w <- err
		}
	}
}

// diskProgram appends to a file: path, size, senders, encrypt, warm-up, window.
func diskProgram(args []string) error {
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	senders, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	warm, err := time.ParseDuration(args[4])
	if err != nil {
		return err
	}
	measured, err := time.ParseDuration(args[5])
	if err != nil {
		return err
	}
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		return err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	a := &appender{file: f, wake: make(chan struct{}, 1)}
	committed := make(chan struct{})
	go func() {
		defer close(committed)
		a.commit()
	}()
	from := time.Now().Add(warm)
	until := from.Add(measured)
	report := diskReport{Record: size}
	if args[3] == "true" {
		report.Record += gcm.Overhead()
	}
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			plain, nonce := bytes.Repeat([]byte("x"), size), make([]byte, gcm.NonceSize())
			sealed := make([]byte, 0, size+gcm.Overhead())
			for n := uint64(0); time.Now().Before(until); n++ {
				start := time.Now()
				record := plain
				if args[3] == "true" {
					nonce[0], nonce[1], nonce[2], nonce[3] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
					record = gcm.Seal(sealed, nonce, plain, nil)
				}
				err := a.append(record)
				mu.Lock()
				report.Records++
				if now := time.Now(); now.After(from) && now.Before(until) {
					report.Waits = append(report.Waits, now.Sub(start))
				}
				if err != nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	close(a.wake)
	<-committed
	if failed != nil {
		return failed
	}
	report.Flushes = a.flushes
	return json.NewEncoder(os.Stdout).Encode(report)
}
