// Package lineproto holds what the two line protocols, SMTP and POP3, share on
// the wire: an accept loop with connection limits, a connection whose reads and
// writes cannot last for ever, and a line reader of bounded memory.
package lineproto

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// Deadlines bounds how long a peer may take. Zero fields mean no such bound.
type Deadlines struct {
	Idle    time.Duration // longest silence in either direction
	Write   time.Duration // longest wait for the peer to take 64 KiB; zero: Idle
	Session time.Duration // longest connection in total, whatever the progress
	// MinRate is the fewest octets per second a bulk transfer may average once
	// it has lasted RateGrace; see Conn.BeginTransfer.
	MinRate   int64
	RateGrace time.Duration
}

// ErrTooSlow says that a transfer fell below the minimum rate. It wraps
// os.ErrDeadlineExceeded, as every other time limit here does.
var ErrTooSlow = fmt.Errorf("transfer below the minimum rate: %w", os.ErrDeadlineExceeded)

// Conn is a net.Conn that sets the deadline of every read and write itself. The
// idle deadline is renewed by progress only.
type Conn struct {
	net.Conn
	limits   Deadlines
	started  time.Time
	stop     atomic.Int64 // unix nanoseconds after which nothing is waited for; 0: none
	transfer time.Time    // start of the bulk transfer; zero outside one
	received int64        // octets read since then
	place
}

// NewConn takes over c with the given limits, counted from now.
func NewConn(c net.Conn, limits Deadlines) *Conn {
	return &Conn{Conn: c, limits: limits, started: time.Now(), place: place{given: make(chan struct{})}}
}

// SetLimits replaces the limits from the next read or write on; Session still
// counts from NewConn. It is for the goroutine that reads and writes.
func (c *Conn) SetLimits(limits Deadlines) { c.limits = limits }

// BeginTransfer starts to hold the reads that follow to the minimum rate.
func (c *Conn) BeginTransfer() {
	c.transfer, c.received = time.Now(), 0
	c.transferring.Store(true)
}

// EndTransfer stops holding reads to the minimum rate.
func (c *Conn) EndTransfer() {
	c.transfer = time.Time{}
	c.transferring.Store(false)
}

// CloseBy makes every read and write fail from t on, those under way included.
func (c *Conn) CloseBy(t time.Time) {
	c.stop.Store(t.UnixNano())
	c.Conn.SetDeadline(t)
}

// deadline is the earliest of the limits that apply now to a wait of at most
// idle; zero means none.
func (c *Conn) deadline(now time.Time, idle time.Duration) time.Time {
	var d time.Time
	earlier := func(t time.Time) {
		if d.IsZero() || t.Before(d) {
			d = t
		}
	}
	if idle > 0 {
		earlier(now.Add(idle))
	}
	if c.limits.Session > 0 {
		earlier(c.started.Add(c.limits.Session))
	}
	if s := c.stop.Load(); s != 0 {
		earlier(time.Unix(0, s))
	}
	return d
}

// arm sets a deadline for the read or write that follows.
func (c *Conn) arm(set func(time.Time) error, now time.Time, idle time.Duration) error {
	for {
		stop := c.stop.Load()
		if err := set(c.deadline(now, idle)); err != nil {
			return err
		}
		// A CloseBy since then may have been undone by set.
		if c.stop.Load() == stop {
			return nil
		}
	}
}

// Read reads what the peer sends, within the limits.
func (c *Conn) Read(p []byte) (int, error) {
	now := time.Now()
	if !c.transfer.IsZero() && c.limits.MinRate > 0 {
		if t := now.Sub(c.transfer); t > c.limits.RateGrace && float64(c.received) < t.Seconds()*float64(c.limits.MinRate) {
			return 0, ErrTooSlow
		}
	}
	if !c.beginWait(now) {
		return 0, ErrPlaceGiven
	}
	err := c.arm(c.Conn.SetReadDeadline, now, c.limits.Idle)
	n := 0
	if err == nil {
		n, err = c.Conn.Read(p)
	}
	if !c.endWait() {
		return 0, ErrPlaceGiven
	}
	c.received += int64(n)
	return n, err
}

// writeChunk is how much is written under one idle deadline, so that a large
// reply to a slow but living peer is progress.
const writeChunk = 64 << 10

// Write writes p, renewing the deadline for every 64 KiB that the peer took.
func (c *Conn) Write(p []byte) (int, error) {
	written, idle := 0, c.limits.Write
	if idle == 0 {
		idle = c.limits.Idle
	}
	for {
		if err := c.arm(c.Conn.SetWriteDeadline, time.Now(), idle); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[:min(len(p), writeChunk)])
		written += n
		if p = p[n:]; err != nil || len(p) == 0 {
			return written, err
		}
	}
}

// ErrLineTooLong says that a line was longer than asked for; it has been read to
// its end and dropped.
var ErrLineTooLong = errors.New("line too long")

// ReadLine reads one line that ends with LF or CRLF and is at most max octets
// long, its end included. It returns the line without its end. A longer line
// gives ErrLineTooLong once its end was read. r's buffer must hold max octets.
func ReadLine(r *bufio.Reader, max int) (string, error) {
	line, err := r.ReadSlice('\n')
	if err == nil && len(line) <= max {
		line = line[:len(line)-1]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		return string(line), nil
	}
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice('\n')
	}
	if err != nil {
		return "", err
	}
	return "", ErrLineTooLong
}

// Upper folds a to z, and nothing else: strings.ToUpper makes an S of U+017F, and so
// a command of what is none.
func Upper(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - 'a' + 'A'
		}
		return r
	}, s)
}
