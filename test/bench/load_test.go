//go:build bench && peers

package bench

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"msgw/internal/lab/report"
)

// target is where and how to send.
type target struct {
	addr string
	lmtp bool // LHLO (RFC 2033)
	tls  *tls.Config
	to   func(sender int) string // recipient of all messages of a sender
}

// load is what became of one load.
type load struct {
	acknowledged int             // messages with a 250, warm-up included
	inWindow     int             // of those, with a 250 inside the window
	waits        []time.Duration // from the final dot to the 250, inside the window
	faults       []error
	flush        float64 // p99 of one flush, ms; of disks only
}

// mailboxes is how many there are at each system. A sender keeps to one.
const mailboxes = 64

// replyTime bounds the wait for a reply.
const replyTime = time.Minute

// sizeLine begins each message and tells it from every other one.
const sizeLine = "X-Load: %016x\r\n"

// letter returns a message of size octets as it is sent behind DATA, final dot
// included: a journal report, behind a line that number fills.
func letter(size int) []byte {
	head := fmt.Sprintf(sizeLine, 0)
	msg := append([]byte(head), report.New(1, 0, size-len(head))...)
	if bytes.Contains(msg, []byte("\n.")) || !bytes.HasSuffix(msg, []byte("\r\n")) {
		panic("this report would be changed by transparency")
	}
	return append(msg, ".\r\n"...)
}

func number(msg []byte, n uint64) { copy(msg, fmt.Sprintf(sizeLine, n)) }

// send loads a server: every sender keeps its session and sends one message after the
// other, MAIL, RCPT and DATA in one packet, from its own of several addresses.
func (x target) send(c cell, warm, measured time.Duration) *load {
	total := &load{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	from := time.Now().Add(warm)
	until := from.Add(measured)
	for i := range c.senders {
		wg.Go(func() {
			s := &sender{target: x, number: i, from: from, until: until}
			err := s.run(c)
			mu.Lock()
			defer mu.Unlock()
			total.acknowledged += s.acknowledged
			total.inWindow += len(s.waits)
			total.waits = append(total.waits, s.waits...)
			if err != nil {
				total.faults = append(total.faults, fmt.Errorf("sender %d: %w", i, err))
			}
		})
	}
	wg.Wait()
	return total
}

// sender is one session.
type sender struct {
	target
	number      int
	from, until time.Time // the window

	conn         net.Conn
	r            *bufio.Reader
	acknowledged int
	waits        []time.Duration
}

func (s *sender) run(c cell) error {
	if err := s.open(c.tls); err != nil {
		return err
	}
	defer s.conn.Close()
	msg := letter(c.size)
	for i := uint64(0); time.Now().Before(s.until); i++ {
		number(msg, uint64(s.number)<<32|i)
		waited, err := s.message(msg)
		if err != nil {
			return err
		}
		s.acknowledged++
		if now := time.Now(); now.After(s.from) && now.Before(s.until) {
			s.waits = append(s.waits, waited)
		}
	}
	return s.command("QUIT\r\n", 221)
}

// open connects and says hello.
func (s *sender) open(secure bool) error {
	// A server may bound what comes from one address.
	d := net.Dialer{Timeout: replyTime, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 20, byte(1+s.number%16))}}
	conn, err := d.Dial("tcp", s.addr)
	if err != nil {
		return err
	}
	s.conn, s.r = conn, bufio.NewReader(conn)
	hello := "EHLO load.example.net\r\n"
	if s.lmtp {
		hello = "LHLO load.example.net\r\n"
	}
	err = errors.Join(s.expect(220), s.command(hello, 250))
	if err == nil && secure {
		if err = s.command("STARTTLS\r\n", 220); err == nil {
			s.conn = tls.Client(conn, s.tls)
			s.r = bufio.NewReader(s.conn)
			err = s.command(hello, 250)
		}
	}
	if err != nil {
		conn.Close()
	}
	return err
}

// message sends one and returns the time from the final dot to its 250.
func (s *sender) message(msg []byte) (time.Duration, error) {
	envelope := "MAIL FROM:<journal@load.example.net>\r\nRCPT TO:<" + s.to(s.number) + ">\r\nDATA\r\n"
	if err := s.write([]byte(envelope)); err != nil {
		return 0, err
	}
	for _, code := range []int{250, 250, 354} {
		if err := s.expect(code); err != nil {
			return 0, err
		}
	}
	last := len(msg) - 64
	if err := s.write(msg[:last]); err != nil {
		return 0, err
	}
	dot := time.Now()
	if err := s.write(msg[last:]); err != nil {
		return 0, err
	}
	err := s.expect(250)
	return time.Since(dot), err
}

func (s *sender) command(line string, code int) error {
	if err := s.write([]byte(line)); err != nil {
		return err
	}
	return s.expect(code)
}

func (s *sender) write(b []byte) error {
	s.conn.SetDeadline(time.Now().Add(replyTime))
	_, err := s.conn.Write(b)
	return err
}

// expect reads a reply, of any number of lines, that must have a code.
func (s *sender) expect(code int) error {
	for {
		line, err := s.r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("waiting for %d: %w", code, err)
		}
		if len(line) < 4 || string(line[:3]) != fmt.Sprint(code) {
			return fmt.Errorf("expected %d, got %s", code, strings.TrimSpace(string(line)))
		}
		if line[3] != '-' {
			return nil
		}
	}
}

// quantile returns a quantile in milliseconds.
func quantile(ds []time.Duration, q float64) float64 {
	if len(ds) == 0 {
		return math.NaN()
	}
	ds = slices.Sorted(slices.Values(ds))
	return float64(ds[min(len(ds)-1, int(q*float64(len(ds))))]) / float64(time.Millisecond)
}
