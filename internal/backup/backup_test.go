package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"msgw/internal/ca"
	"msgw/internal/journal"
	"msgw/internal/seal"
	"msgw/raftstore"
)

// message is one that goes into a backup or came out of it.
type message struct {
	meta   journal.Meta
	copied bool
	sealed []byte
}

const mailboxID = "mbx-2a20342e96294505a35eb5c8364eb67c"

var made = time.Date(2026, 11, 24, 4, 5, 6, 7, time.UTC)

// fixture makes, once, a configuration of one mailbox and the key of its CA: keys cost
// time.
var fixture = sync.OnceValues(func() (*raftstore.State, []byte) {
	key, err := seal.NewKey(ctx, seal.NewDeriver(1<<10), mailboxID, "a password", seal.KDF{Time: 1, Memory: 8, Threads: 1}, made)
	if err != nil {
		panic(err)
	}
	root, caKey, err := ca.New("0123456789abcdef", made)
	if err != nil {
		panic(err)
	}
	return &raftstore.State{Format: 1, Cluster: "0123456789abcdef", Epoch: raftstore.Epoch{Number: 1, ID: "fedcba9876543210"}, Revision: 7, Index: 9, Term: 2, Hash: "00",
		Zone: raftstore.Zone{Name: "msgw.example.com", Contact: "hostmaster@example.com", MXMode: "tier"},
		CA:   raftstore.CA{Certificate: root, Key: []byte("sealed"), SealedTo: []string{"a"}},
		Nodes: map[string]raftstore.Node{"a": {Name: "a", ID: "0011", Role: raftstore.Site, Host: "a.msgw.example.com", Peer: "192.0.2.1:8451", Weight: 3,
			SealTo: "age1pq1", Joined: made}},
		Mailboxes: map[string]raftstore.Mailbox{mailboxID: {ID: mailboxID, Status: raftstore.Active, Keys: []seal.Key{key}, Version: 1, Created: made}},
		Invites:   map[string]raftstore.Invite{}}, caKey
})

// mail makes messages of some sizes, own ones and copies.
func mail(state *raftstore.State) []message {
	rng := rand.New(rand.NewPCG(1, 2))
	var all []message
	for i, size := range []int{0, 1, 511, 512, 513, 3000} {
		sealed := make([]byte, size)
		for j := range sealed {
			sealed[j] = byte(rng.Uint32())
		}
		var id journal.ID
		id[0], id[15] = 7, byte(i)
		all = append(all, message{journal.Meta{ID: id, Mailbox: mailboxID, Key: state.Mailboxes[mailboxID].Keys[0].ID, Received: made.Add(time.Duration(i)),
			Trace: 10, Octets: int64(size), BareLFs: 1, Sealed: int64(size), SHA256: sha256.Sum256(sealed), Flags: journal.JournalReport | journal.BareLF}, i%2 == 1, sealed})
	}
	return all
}

func write(t testing.TB, opt Options, mail []message) []byte {
	t.Helper()
	state, _ := fixture()
	var out bytes.Buffer
	opt.Node, opt.Version, opt.Made = "a", "1.0", made
	w, err := NewWriter(&out, state, opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mail {
		if err := w.Message(m.meta, m.copied, bytes.NewReader(m.sealed)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// readAll reads a backup and the messages in it.
func readAll(b []byte, ids ...Identity) (*Contents, []message, error) {
	var got []message
	c, err := Read(bytes.NewReader(b), ids, func(m journal.Meta, copied bool, sealed io.Reader) error {
		octets, err := io.ReadAll(sealed)
		got = append(got, message{m, copied, append([]byte{}, octets...)})
		return err
	})
	return c, got, err
}

type keyPair struct {
	identity  Identity
	recipient age.Recipient
}

func classic(t testing.TB) keyPair {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{id, id.Recipient()}
}

func hybrid(t testing.TB) keyPair {
	t.Helper()
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{id, id.Recipient()}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	state, caKey := fixture()
	want := mail(state)
	first, second, other := hybrid(t), hybrid(t), classic(t)
	for name, x := range map[string]struct {
		opt Options
		ids []Identity
	}{
		"plain":          {Options{Journal: true}, nil},
		"configuration":  {Options{}, nil},
		"classic":        {Options{Journal: true, CAKey: caKey, Recipients: []age.Recipient{other.recipient}}, []Identity{first.identity, other.identity}},
		"two recipients": {Options{Journal: true, CAKey: caKey, Recipients: []age.Recipient{first.recipient, second.recipient}}, []Identity{second.identity}},
		"without key":    {Options{Recipients: []age.Recipient{first.recipient}}, []Identity{first.identity}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, sum := want, Summary{Mailboxes: 1, Own: 3, Copies: 3, Octets: 4537}
			if !x.opt.Journal {
				want, sum = nil, Summary{Mailboxes: 1}
			}
			b := write(t, x.opt, want)
			c, got, err := readAll(b, x.ids...)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("messages: %+v\nexpected %+v", got, want)
			}
			if !reflect.DeepEqual(c.State, state) {
				t.Errorf("configuration: %+v\nexpected %+v", c.State, state)
			}
			encrypted := len(x.opt.Recipients) > 0
			if c.Summary != sum || c.Encrypted != encrypted || !bytes.Equal(c.CAKey, x.opt.CAKey) {
				t.Errorf("summary %+v, encrypted %v, key %d octets", c.Summary, c.Encrypted, len(c.CAKey))
			}
			head := Head{Format: 1, Made: made, By: "1.0", Cluster: state.Cluster, Node: "a", Zone: "msgw.example.com", Epoch: state.Epoch, Revision: 7, Index: 9,
				CAKey: x.opt.CAKey != nil, Journal: x.opt.Journal}
			if c.Head != head {
				t.Errorf("head: %+v", c.Head)
			}
			if bytes.Contains(b, []byte("msgw.example.com")) == encrypted {
				t.Errorf("encrypted: %v, and the zone's name is in it or not", encrypted)
			}
			if !encrypted {
				return
			}
			if _, _, err := readAll(b); !errors.Is(err, ErrEncrypted) {
				t.Errorf("without identity: %v", err)
			}
			if _, _, err := readAll(b, hybrid(t).identity); !errors.Is(err, ErrIdentity) {
				t.Errorf("with another identity: %v", err)
			}
		})
	}
}

// Stock programs read a backup: tar lists it, and its list is one of sha256sum.
func TestStockFormats(t *testing.T) {
	t.Parallel()
	state, caKey := fixture()
	k := classic(t)
	plain, err := age.Decrypt(bytes.NewReader(write(t, Options{Journal: true, CAKey: caKey, Recipients: []age.Recipient{k.recipient}}, mail(state)[:2])), k.identity)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	sums := ""
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if names = append(names, h.Name); h.Name == "SHA256SUMS" {
			if string(b) != sums {
				t.Errorf("list:\n%sexpected\n%s", b, sums)
			}
			continue
		}
		sums += fmt.Sprintf("%x  %s\n", sha256.Sum256(b), h.Name)
		if h.Name == "ca.key" && !bytes.HasPrefix(b, []byte("-----BEGIN PRIVATE KEY-----\n")) {
			t.Errorf("ca.key: %.40q", b)
		}
		if h.Mode != 0o600 || !h.ModTime.Equal(made.Truncate(time.Second)) {
			t.Errorf("%s: mode %o, time %v", h.Name, h.Mode, h.ModTime)
		}
	}
	want := "backup.json config.json ca.key own/07000000-0000-0000-0000-000000000000.meta own/07000000-0000-0000-0000-000000000000.age" +
		" copy/07000000-0000-0000-0000-000000000001.meta copy/07000000-0000-0000-0000-000000000001.age SHA256SUMS"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("members: %s\nexpected %s", got, want)
	}
}

// A backup that is cut short anywhere is no backup.
func TestCutShort(t *testing.T) {
	t.Parallel()
	state, _ := fixture()
	k := classic(t)
	plain, sealed := write(t, Options{Journal: true}, mail(state)), write(t, Options{Journal: true, Recipients: []age.Recipient{k.recipient}}, mail(state))
	for n := 0; n < len(plain); n += 1 + 11*(n/100%2) { // some places one by one
		if _, _, err := readAll(plain[:n]); !errors.Is(err, ErrBroken) {
			t.Fatalf("the first %d of %d octets: %v", n, len(plain), err)
		}
	}
	for n := 0; n < len(sealed); n += 37 {
		if _, _, err := readAll(sealed[:n], k.identity); !errors.Is(err, ErrBroken) {
			t.Fatalf("the first %d of %d encrypted octets: %v", n, len(sealed), err)
		}
	}
	for _, more := range []string{"\x00", strings.Repeat("\x00", 512), "x"} {
		if _, _, err := readAll(append(bytes.Clone(plain), more...)); !errors.Is(err, ErrBroken) {
			t.Errorf("%d octets more: %v", len(more), err)
		}
		if _, _, err := readAll(append(bytes.Clone(sealed), more...), k.identity); !errors.Is(err, ErrBroken) {
			t.Errorf("%d octets more behind an encrypted one: %v", len(more), err)
		}
	}
}

// An octet that changed is found, wherever it lies, or it is one that nobody reads.
func TestChangedOctet(t *testing.T) {
	t.Parallel()
	state, _ := fixture()
	b := write(t, Options{Journal: true}, mail(state)[:4])
	want, wantMail, err := readAll(b)
	if err != nil {
		t.Fatal(err)
	}
	unread, tried := 0, 0
	for i := 0; i < len(b); i += 1 + 11*(i/100%2) {
		tried++
		b[i] ^= 0x41
		c, got, err := readAll(b)
		b[i] ^= 0x41
		switch {
		case err != nil && !errors.Is(err, ErrBroken):
			t.Fatalf("octet %d: %v", i, err)
		case err != nil:
		case !reflect.DeepEqual(got, wantMail) || !reflect.DeepEqual(c, want):
			t.Fatalf("octet %d: it is read as another backup", i)
		default:
			unread++
		}
	}
	if unread > tried/2 {
		t.Errorf("%d of %d octets can be changed unseen", unread, tried)
	}
	k := classic(t)
	b = write(t, Options{Journal: true, Recipients: []age.Recipient{k.recipient}}, mail(state)[:4])
	for i := 0; i < len(b); i += 37 {
		b[i] ^= 0x41
		if _, _, err := readAll(b, k.identity); err == nil {
			t.Fatalf("octet %d of an encrypted backup", i)
		}
		b[i] ^= 0x41
	}
}
