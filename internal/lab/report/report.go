// Package report makes messages as journal senders send them. A message is a
// function of its seed, index and size alone, differs from every other one, and
// says itself which it is, so that whoever fetched it can tell that it is whole.
package report

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// New returns the journal report of Exchange Online about one message: an envelope
// in text (the grammar is at http://technet.microsoft.com/en-us/library/bb738122.aspx)
// and the unaltered original. It is size octets long, or as short as such a report
// can be if that is more.
func New(seed uint64, i, size int) []byte {
	return fit(seed, i, size, func(m *journaled, fill int) []byte { return m.exchange(fill, true) })
}

// OnPremises returns the journal report of an Exchange server of one's own.
func OnPremises(seed uint64, i, size int) []byte {
	return fit(seed, i, size, func(m *journaled, fill int) []byte { return m.exchange(fill, false) })
}

// Google returns what the third-party archiving of Google Workspace sends: a copy
// of the message with trace lines on top.
func Google(seed uint64, i, size int) []byte {
	return fit(seed, i, size, (*journaled).google)
}

// Postfix returns what always_bcc of Postfix sends: a copy of the message.
func Postfix(seed uint64, i, size int) []byte {
	return fit(seed, i, size, (*journaled).postfix)
}

// fit builds a message with as much filling as makes it size octets long.
func fit(seed uint64, i, size int, build func(m *journaled, fill int) []byte) []byte {
	shortest := len(build(newJournaled(seed, i), 0))
	return build(newJournaled(seed, i), max(0, size-shortest))
}

// idMark precedes seed and index in the Message-ID of the original.
const idMark = "<msgw-lab."

// Identify returns which message msg is, whoever made it of the functions above;
// ok says whether it is one of theirs at all. That it is whole shows by making it
// again in the same size.
func Identify(msg []byte) (seed uint64, i int, ok bool) {
	_, rest, found := bytes.Cut(msg, []byte("Message-ID: "+idMark))
	id, _, ended := bytes.Cut(rest[:min(len(rest), 60)], []byte("@"))
	a, b, dotted := strings.Cut(string(id), ".")
	if !found || !ended || !dotted {
		return 0, 0, false
	}
	seed, err := strconv.ParseUint(a, 16, 64)
	if err != nil {
		return 0, 0, false
	}
	i, err = strconv.Atoi(b)
	return seed, i, err == nil
}

// journaled is one original message and what its report says of it.
type journaled struct {
	seed uint64
	i    int
	date time.Time
	from person
	to   []person
	cc   []person
	rand *rand.ChaCha8 // what is not decided yet

	subject string
}

type person struct{ name, address string }

func (p person) String() string { return `"` + p.name + `" <` + p.address + `>` }

func newJournaled(seed uint64, i int) *journaled {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(i))
	m := &journaled{seed: seed, i: i, rand: rand.NewChaCha8(key)}
	m.date = time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Second)
	m.from = m.person("example.org")
	m.to = []person{m.person("example.com")}
	for range m.pick(3) {
		m.cc = append(m.cc, m.person("example.org"))
	}
	m.subject = fmt.Sprintf("%s of week %d, no. %d", pickOf(m, "Minutes", "Offer", "Invoice", "Drawings", "Question"), 1+m.pick(52), i)
	return m
}

// pick returns a number below n.
func (m *journaled) pick(n int) int { return int(m.rand.Uint64() % uint64(n)) }

func pickOf(m *journaled, words ...string) string { return words[m.pick(len(words))] }

func (m *journaled) person(domain string) person {
	first := pickOf(m, "Ada", "Blaise", "Carl", "Dora", "Emmy", "Fritz", "Grace", "Hedy")
	last := pickOf(m, "Berg", "Dahl", "Fuchs", "Kern", "Lind", "Moser", "Roth", "Vogt")
	return person{first + " " + last, strings.ToLower(first + "." + last + "@" + domain)}
}

// guid returns 128 bits in the form that Exchange writes.
func (m *journaled) guid() string {
	var b [16]byte
	m.rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (m *journaled) id() string { return fmt.Sprintf("%s%x.%d@example.org>", idMark, m.seed, m.i) }
