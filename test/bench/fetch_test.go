//go:build bench && peers

package bench

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// door is where and how to fetch.
type door struct {
	addr string // of POP3 with TLS from the start
	tls  *tls.Config
	// account returns the user and the password of a mailbox.
	account func(box int) (user, password string)
}

// fetched are the messages that were fetched whole, by number.
type fetched struct {
	want []byte // a letter, its final dot left out

	mu   sync.Mutex
	seen []bool
}

func newFetched(n, size int) *fetched {
	return &fetched{want: bytes.TrimSuffix(letter(size), []byte(".\r\n")), seen: make([]bool, n)}
}

// check says why msg is not a letter that was sent, below what a server put on top of
// it, and that nobody fetched yet.
func (f *fetched) check(msg []byte) error {
	at := len(msg) - len(f.want)
	if at < 0 {
		return fmt.Errorf("a message of %d octets, %d were sent", len(msg), len(f.want))
	}
	msg = msg[at:]
	head := len(fmt.Sprintf(sizeLine, 0))
	if !bytes.Equal(msg[head:], f.want[head:]) {
		return errors.New("a message was changed")
	}
	n, err := strconv.ParseUint(string(bytes.TrimPrefix(msg[:head-2], []byte("X-Load: "))), 16, 64)
	if err != nil {
		return fmt.Errorf("a message was changed: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n >= uint64(len(f.seen)) || f.seen[n] {
		return fmt.Errorf("message %d was not sent, or fetched before", n)
	}
	f.seen[n] = true
	return nil
}

// count returns how many messages were fetched.
func (f *fetched) count() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.seen {
		if s {
			n++
		}
	}
	return n
}

// session is one session of an archive. It takes every octet as it comes and trusts the
// listing: a message must be as long as LIST said and be followed by the final dot. No
// letter has a line that begins with a dot, so none is doubled.
type session struct {
	conn *tls.Conn
	r    *bufio.Reader
	buf  []byte
}

// login opens a session. peer chooses its own address, since a server may bound what comes
// from one.
func (d door) login(peer, box int) (*session, error) {
	dial := net.Dialer{Timeout: replyTime, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 20, byte(1+peer%16))}}
	conn, err := dial.Dial("tcp", d.addr)
	if err != nil {
		return nil, err
	}
	s := &session{conn: tls.Client(conn, d.tls)}
	s.r = bufio.NewReaderSize(s.conn, 32<<10)
	user, password := d.account(box)
	_, err = s.line()
	if err == nil {
		_, err = s.command("USER " + user)
	}
	if err == nil {
		_, err = s.command("PASS " + password)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *session) write(b string) error {
	s.conn.SetDeadline(time.Now().Add(replyTime))
	_, err := io.WriteString(s.conn, b)
	return err
}

// line reads an answer of one line, which must be +OK.
func (s *session) line() (string, error) {
	line, err := s.r.ReadSlice('\n')
	if err == nil && !bytes.HasPrefix(line, []byte("+OK")) {
		err = errors.New(strings.TrimSpace(string(line)))
	}
	return strings.TrimSpace(string(line)), err
}

func (s *session) command(line string) (string, error) {
	if err := s.write(line + "\r\n"); err != nil {
		return "", err
	}
	return s.line()
}

// list returns what a listing command says of each message, in order.
func (s *session) list(command string, f func(n int, said string) error) error {
	if _, err := s.command(command); err != nil {
		return err
	}
	for i := 1; ; i++ {
		line, err := s.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if string(line) == ".\r\n" {
			return nil
		}
		number, said, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if number != strconv.Itoa(i) {
			return fmt.Errorf("%s: message %d is listed as %s", command, i, number)
		}
		if err := f(i, said); err != nil {
			return err
		}
	}
}

// octets lists the messages as an archive does before it fetches: UIDL, then LIST.
func (s *session) octets() ([]int, error) {
	ids := map[string]bool{}
	if err := s.list("UIDL", func(_ int, id string) error { ids[id] = true; return nil }); err != nil {
		return nil, err
	}
	var sizes []int
	err := s.list("LIST", func(_ int, said string) error {
		size, err := strconv.Atoi(said)
		sizes = append(sizes, size)
		return err
	})
	if err == nil && len(ids) != len(sizes) {
		err = fmt.Errorf("UIDL gives %d ids for %d messages", len(ids), len(sizes))
	}
	return sizes, err
}

// message reads the answer to RETR of a message of size octets. The message belongs to
// the caller until the next call.
func (s *session) message(size int) ([]byte, error) {
	if _, err := s.line(); err != nil {
		return nil, err
	}
	if n := size + 3; cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	b := s.buf[:size+3]
	if _, err := io.ReadFull(s.r, b); err != nil {
		return nil, err
	}
	if !bytes.HasSuffix(b, []byte("\r\n.\r\n")) {
		return nil, fmt.Errorf("after %d octets, as listed, comes %q instead of the end", size, b[size-2:])
	}
	return b[:size], nil
}

// drain fetches and deletes every message and says QUIT. Up to depth commands are sent
// before their answers came; with a depth of 1 each waits for the one before.
func (s *session) drain(depth int, f *fetched) error {
	defer s.conn.Close()
	sizes, err := s.octets()
	if err != nil {
		return err
	}
	commands := make([]string, 0, 2*len(sizes)) // RETR and DELE of each
	for i := range sizes {
		n := strconv.Itoa(i + 1)
		commands = append(commands, "RETR "+n+"\r\n", "DELE "+n+"\r\n")
	}
	sent := 0
	for done := range commands {
		// What there is room for goes out together, once half the answers are there.
		if waiting := sent - done; waiting <= depth/2 && sent < len(commands) {
			more := min(depth-waiting, len(commands)-sent)
			if err := s.write(strings.Join(commands[sent:sent+more], "")); err != nil {
				return err
			}
			sent += more
		}
		if done%2 == 1 {
			_, err = s.line()
		} else {
			var msg []byte
			if msg, err = s.message(sizes[done/2]); err == nil {
				err = f.check(msg)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(commands[done]), err)
		}
	}
	_, err = s.command("QUIT")
	return err
}
