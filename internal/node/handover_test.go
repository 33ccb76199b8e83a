package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"msgw/internal/journal"
	"msgw/internal/pop3d"
	"msgw/internal/seal"
	"msgw/internal/shadow"
)

// oneDrop is a pop3d.Maildrops of one mailbox, which any password opens: what lies behind
// a login of a node.
type oneDrop struct {
	*maildrops
	mailbox string
	keys    []seal.Key
	ids     []seal.Identity
}

// newOneDrop seals n messages of size octets into a journal.
func newOneDrop(t testing.TB, n, size int) *oneDrop {
	t.Helper()
	node := &Node{log: slog.New(slog.DiscardHandler)}
	d := &oneDrop{maildrops: newMaildrops(node), mailbox: "mbx-1"}
	deriver := seal.NewDeriver(8 << 10)
	key, err := seal.NewKey(t.Context(), deriver, d.mailbox, "password", seal.KDF{Time: 1, Memory: 64, Threads: 1}, time.Now())
	if err == nil {
		d.ids, err = seal.Unlock(t.Context(), deriver, d.mailbox, "password", []seal.Key{key})
	}
	if err != nil {
		t.Fatal(err)
	}
	d.keys = []seal.Key{key}
	dir := t.TempDir()
	open := func(name string) *journal.Journal {
		j, err := journal.Open(filepath.Join(dir, name), journal.Options{KeepGraves: true, CompactRate: -1, ScrubRate: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		})
		return j
	}
	own, held := open(journalDir), open(shadowDir)
	settings := func() shadow.Settings { return shadow.Settings{Times: shadow.Times{Return: time.Nanosecond}} } // nobody is waited for
	if node.shipper, err = shadow.Open(shadow.Options{Own: own, Dir: dir, Settings: settings, Log: node.log}); err == nil {
		node.holder, err = shadow.OpenHolder(shadow.HolderOptions{Held: held, Dir: dir, Log: node.log})
	}
	if err != nil {
		t.Fatal(err)
	}
	if node.quarantine, err = openQuarantine(dir, node.log); err != nil {
		t.Fatal(err)
	}
	message := []byte(strings.Repeat(strings.Repeat("0123456789", 7)+"\r\n", size/72+1))[:size]
	copy(message[size-2:], "\r\n")
	var recipients seal.Recipients
	for left := n; left > 0; {
		ms := make([]journal.Message, min(left, 100))
		for i := range ms {
			id := journal.NewID()
			trace := journal.TraceBinding(id, d.mailbox) + "\r\n"
			m := journal.Meta{ID: id, Mailbox: d.mailbox, Key: key.ID, Received: time.Now(), Trace: int64(len(trace)), Octets: int64(size)}
			ms[i] = journal.Message{Meta: m, Body: own.NewBody(id)}
			w, err := recipients.Writer(ms[i].Body, key.Recipient)
			if err == nil {
				_, err = w.Write(append([]byte(trace), message...))
			}
			if err == nil {
				err = w.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := own.Commit(ms...); err != nil {
			t.Fatal(err)
		}
		left -= len(ms)
	}
	return d
}

func (d *oneDrop) Login(context.Context, string, string) (pop3d.Maildrop, error) {
	return d.list(d.mailbox, d.keys, d.ids), nil
}

// Listing costs little memory for each message: that of the listing itself, which is
// 250 octets, and as much again while it is made.
func TestListingIsSmall(t *testing.T) { // not parallel: it counts what is allocated
	const n, mostAllocs, mostOctets = 5000, 1.1, 500
	drop := newOneDrop(t, n, 100)
	measure := func() (allocs, octets float64) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		opened, _ := drop.Login(t.Context(), "", "")
		list := opened.Messages()
		runtime.ReadMemStats(&after)
		if len(list) != n {
			t.Fatalf("%d messages are listed, want %d", len(list), n)
		}
		return float64(after.Mallocs-before.Mallocs) / n, float64(after.TotalAlloc-before.TotalAlloc) / n
	}
	allocs, octets := measure()
	t.Logf("%.2f allocations and %.0f octets for each message", allocs, octets)
	if allocs > mostAllocs || octets > mostOctets {
		t.Errorf("%.2f allocations and %.0f octets for each message, want at most %.2f and %d", allocs, octets, mostAllocs, mostOctets)
	}
}

// BenchmarkRetrieve fetches messages of 75 KB over TLS, one RETR after the other.
func BenchmarkRetrieve(b *testing.B) {
	const n, size = 200, 75 << 10
	drop := newOneDrop(b, n, size)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error)
	srv := pop3d.New(pop3d.Options{Maildrops: drop, TLS: config, Log: slog.New(slog.DiscardHandler)})
	go func() { served <- srv.Serve(ctx, nil, l) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			b.Error(err)
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReaderSize(c, 32<<10)
	ask := func(command string) {
		if _, err := io.WriteString(c, command); err != nil {
			b.Fatal(err)
		}
		if line, err := r.ReadSlice('\n'); err != nil || !bytes.HasPrefix(line, []byte("+OK")) {
			b.Fatalf("%s: %s %v", command, line, err)
		}
	}
	ask("")
	ask("USER x\r\n")
	ask("PASS x\r\n")
	b.SetBytes(size)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		ask(fmt.Sprintf("RETR %d\r\n", 1+i%n))
		if _, err := r.Discard(size + len(".\r\n")); err != nil {
			b.Fatal(err)
		}
	}
}
