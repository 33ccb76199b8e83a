//go:build peers

package senders

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"msgw/test/labtest"
)

// A sender that binds to recordedFrom reaches the nodes through a relay that records
// what it says. What comes from elsewhere, the nodes' own probes among it, does not.
const recordedFrom = "127.0.2.1"

// relays maps a node's address to that of the relay in front of it.
var relays = map[string]string{"127.0.0.11": "127.0.3.11", "127.0.0.12": "127.0.3.12"}

// relay passes octets between senders and nodes and keeps them. It withholds STARTTLS,
// so that there is something to read; in all else it changes nothing.
type relay struct {
	mu       sync.Mutex
	begun    int
	sessions []*recording // that have ended
}

// recording is one session: what each side said.
type recording struct {
	node           string // address
	client, server bytes.Buffer
}

// startRelay puts a relay in front of both sites.
func startRelay(t *testing.T) *relay {
	t.Helper()
	r := &relay{}
	rules := "table ip senders {\n chain out {\n  type nat hook output priority -100\n"
	for node, at := range relays {
		rules += "  ip saddr " + recordedFrom + " ip daddr " + node + " tcp dport 25 dnat to " + at + ":25\n"
		l, err := net.Listen("tcp", at+":25")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go r.accept(t, l, node)
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(rules + " }\n}\n")
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("nft", "delete", "table", "ip", "senders").CombinedOutput(); err != nil {
			t.Errorf("nft: %v\n%s", err, out)
		}
	})
	return r
}

func (r *relay) accept(t *testing.T, l net.Listener, node string) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		r.mu.Lock()
		r.begun++
		r.mu.Unlock()
		go func() {
			defer c.Close()
			s, err := net.Dial("tcp", node+":25")
			if err != nil {
				t.Errorf("relay: %v", err)
				return
			}
			defer s.Close()
			rec := &recording{node: node}
			done := make(chan struct{})
			go func() {
				io.Copy(s, io.TeeReader(c, &rec.client))
				s.(*net.TCPConn).CloseWrite()
				close(done)
			}()
			withoutTLS(c, io.TeeReader(s, &rec.server))
			c.(*net.TCPConn).CloseWrite()
			<-done
			r.mu.Lock()
			defer r.mu.Unlock()
			r.sessions = append(r.sessions, rec)
		}()
	}
}

// withoutTLS copies replies, line by line, and calls STARTTLS by a name that nobody
// knows.
func withoutTLS(to io.Writer, from io.Reader) {
	br, bw := bufio.NewReader(from), bufio.NewWriter(to)
	for {
		line, err := br.ReadString('\n')
		if len(line) > 4 && line[4:] == "STARTTLS\r\n" {
			line = line[:4] + "XNOTLS\r\n"
		}
		bw.WriteString(line)
		if br.Buffered() == 0 || err != nil {
			if ferr := bw.Flush(); ferr != nil || err != nil {
				return
			}
		}
	}
}

// ended waits until no session is under way, and returns all there were.
func (r *relay) ended(t *testing.T) []*recording {
	t.Helper()
	labtest.Within(t, patience, "every session through the relay has ended", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.begun != len(r.sessions) {
			return fmt.Errorf("%d of %d have", len(r.sessions), r.begun)
		}
		return nil
	})
	return r.sessions
}
