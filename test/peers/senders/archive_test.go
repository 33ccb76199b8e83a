//go:build peers

package senders

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"msgw/internal/admin"
	"msgw/internal/lab"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/report"
	"msgw/internal/node"
	"msgw/test/corpus"
	"msgw/test/labtest"
)

// stored is a message as the archive fetched it.
type stored struct {
	box    string // mailbox id
	site   string // node that handed it over
	octets []byte
}

// fetch empties mailboxes at both sites by POP3 with TLS and returns what was there,
// by unique id.
func (w *world) fetch(t *testing.T, boxes ...lab.Mailbox) map[string]stored {
	t.Helper()
	pem, err := os.ReadFile(w.file.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	got := map[string]stored{}
	for _, n := range w.file.Nodes {
		// A site that just started lists its mail once it has heard the other one.
		labtest.Within(t, patience, n.Name+" is in SYNC", func() error {
			st, err := admin.NewClient(n.Dir, node.SocketFile).Status(t.Context())
			if err == nil && st.Copies.State != "SYNC" {
				err = errors.New(st.Copies.State)
			}
			return err
		})
		for _, box := range boxes {
			cfg := archive.Config{Address: n.POP3S, User: box.ID, Password: box.Password, Timeout: patience,
				TLS: &tls.Config{RootCAs: pool, ServerName: n.Host}}
			_, err := archive.Fetch(t.Context(), cfg, true, func(id string, msg []byte) error {
				if s, twice := got[id]; twice {
					t.Errorf("message %s is at %s and at %s", id, s.site, n.Name)
				}
				got[id] = stored{box.ID, n.Name, bytes.Clone(msg)}
				return nil
			})
			if err != nil {
				t.Fatalf("fetch from %s: %v", n.Name, err)
			}
		}
	}
	return got
}

// handedOver is a message as POP3 hands it over: octet for octet, but that it has to
// end with CRLF, and that a dot behind a bare LF makes every bare LF a CRLF.
func handedOver(octets []byte) []byte {
	for i := 1; i < len(octets); i++ {
		if octets[i] == '.' && octets[i-1] == '\n' && (i == 1 || octets[i-2] != '\r') {
			octets = bytes.ReplaceAll(bytes.ReplaceAll(octets, crlf, []byte("\n")), []byte("\n"), crlf)
			break
		}
	}
	if len(octets) > 0 && !bytes.HasSuffix(octets, crlf) {
		octets = append(slices.Clip(octets), crlf...)
	}
	return octets
}

// judge compares what senders put on the wire with what the archive fetched: each
// message that got a 250 is there exactly once for each mailbox, octet for octet, and
// nothing else is. It returns the transactions that got one.
func judge(t *testing.T, sessions []*recording, fetched map[string]stored) (accepted []transaction) {
	t.Helper()
	left := map[string]bool{}
	for id := range fetched {
		left[id] = true
	}
	for i, s := range sessions {
		all, err := decode(s.client.Bytes(), s.server.Bytes())
		if err != nil {
			t.Errorf("session %d, with %s: %v", i, s.node, err)
		}
		for _, x := range all {
			if x.code != 250 {
				continue
			}
			accepted = append(accepted, x)
			ids := x.ids()
			if len(ids) != len(x.to) {
				t.Errorf("message from <%s> for %q got the names %q", x.from, x.to, ids)
			}
			want := handedOver(x.octets)
			for i, id := range ids {
				switch got, ok := fetched[id]; {
				case !ok:
					t.Errorf("message from <%s> got 250 as %s and is not in the archive", x.from, id)
				case !left[id]:
					t.Errorf("message from <%s> got 250 as %s, and so did another", x.from, id)
				case got.box+"@"+lab.Zone != x.to[i]:
					t.Errorf("message %s is in %s, not in %s", id, got.box, x.to[i])
				default:
					trace, octets := corpus.CutTrace(got.octets)
					if !bytes.Equal(octets, want) {
						t.Errorf("message from <%s>: %s, on the wire %s", x.from, difference(octets, want), glimpse(want))
					}
					if corpus.IsReport(want) != (trace == nil) || trace != nil && (trace.From != x.from || !slices.Equal(trace.To, []string{x.to[i]})) {
						t.Errorf("message from <%s> for %s: fields before it: %+v", x.from, x.to[i], trace)
					}
				}
				delete(left, id)
			}
		}
	}
	for id := range left {
		t.Errorf("in the archive and never on the wire: %s", glimpse(fetched[id].octets))
	}
	return accepted
}

// difference says where two messages part.
func difference(got, want []byte) string {
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	return fmt.Sprintf("%d octets instead of %d, differs at %d: %.40q instead of %.40q", len(got), len(want), i, got[i:], want[i:])
}

func glimpse(b []byte) string { return fmt.Sprintf("%d octets %.80q", len(b), b) }

// batch is a run of journal reports, told apart by a seed of their own.
type batch struct {
	seed uint64
	sent int
}

// octets returns the report with a number, counted from 0.
func (b *batch) octets(i int) []byte { return report.New(b.seed, i, 4<<10) }

// complete fails the test unless the archive has each report of the batch that was
// sent once, unchanged below what the sender's own host put on top, and nothing else.
// It returns how many each site handed over.
func (b *batch) complete(t *testing.T, fetched map[string]stored) map[string]int {
	t.Helper()
	times, sites := map[int]int{}, map[string]int{}
	for id, s := range fetched {
		seed, i, ok := report.Identify(s.octets)
		switch {
		case !ok || seed != b.seed || i >= b.sent:
			t.Errorf("%s is not of this batch: %s", id, glimpse(s.octets))
			continue
		case !bytes.HasSuffix(s.octets, b.octets(i)):
			t.Errorf("report %d was changed: %s", i, glimpse(s.octets))
		}
		times[i]++
		sites[s.site]++
	}
	for i := range b.sent {
		if times[i] != 1 {
			t.Errorf("report %d is in the archive %d times", i, times[i])
		}
	}
	return sites
}
