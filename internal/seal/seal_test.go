package seal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newKey(t *testing.T, d *Deriver, mailbox, password string) Key {
	t.Helper()
	k, err := NewKey(t.Context(), d, mailbox, password, GeneratedKDF, t0)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sealed(t *testing.T, k Key, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := new(Recipients).Writer(&b, k.Recipient)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(t *testing.T, c []byte, ids []Identity) (string, error) {
	t.Helper()
	r, n, err := Open(bytes.NewReader(c), int64(len(c)), ids)
	if err != nil {
		return "", err
	}
	p, err := io.ReadAll(io.NewSectionReader(r, 0, n))
	return string(p), err
}

func TestPasswordChangeKeepsMail(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	k := newKey(t, d, "mbx-1", "first password")
	c := sealed(t, k, "hello")
	keys, err := Rewrap(t.Context(), d, "mbx-1", "first password", " second \"password\" ", ChosenKDF, []Key{k})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unlock(t.Context(), d, "mbx-1", "first password", keys); !errors.Is(err, ErrPassword) {
		t.Errorf("the old password still opens: %v", err)
	}
	ids, err := Unlock(t.Context(), d, "mbx-1", " second \"password\" ", keys)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, c, ids); got != "hello" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestResetLocksOldMailOnly(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	old, new := newKey(t, d, "mbx-1", "old password"), newKey(t, d, "mbx-1", "new password")
	old.State = DecryptOnly
	keys := []Key{old, new}
	ids, err := Unlock(t.Context(), d, "mbx-1", "new password", keys)
	if err != nil || len(ids) != 1 {
		t.Fatalf("%d identities, %v", len(ids), err)
	}
	if Unlockable(keys, old.ID) || !Unlockable(keys, new.ID) {
		t.Error("Unlockable disagrees with Unlock")
	}
	if _, err := read(t, sealed(t, old, "x"), ids); !errors.Is(err, ErrLocked) {
		t.Errorf("message under the old key: %v", err)
	}
	if got, err := read(t, sealed(t, new, "x"), ids); got != "x" || err != nil {
		t.Errorf("message under the new key: %q %v", got, err)
	}
	if _, err := Unlock(t.Context(), d, "mbx-1", "old password", keys); !errors.Is(err, ErrPassword) {
		t.Errorf("old password logs in: %v", err)
	}
}

// A wrap must open only where it belongs, with the parameters it was made with.
func TestWrapIsBound(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	k := newKey(t, d, "mbx-1", "the password")
	cases := map[string]func(*Key) string{
		"mailbox":    func(*Key) string { return "mbx-2" },
		"key id":     func(k *Key) string { k.ID = "0000000000000000"; return "mbx-1" },
		"ciphertext": func(k *Key) string { k.Wrap.Ciphertext[5] ^= 1; return "mbx-1" },
		"salt":       func(k *Key) string { k.Wrap.Salt[0] ^= 1; return "mbx-1" },
		"kdf":        func(k *Key) string { k.Wrap.KDF.Time = 2; return "mbx-1" },
		"version":    func(k *Key) string { k.Wrap.Version = 2; return "mbx-1" },
	}
	for name, change := range cases {
		c := k
		c.Wrap.Ciphertext, c.Wrap.Salt = bytes.Clone(k.Wrap.Ciphertext), bytes.Clone(k.Wrap.Salt)
		mailbox := change(&c)
		if _, err := Unlock(t.Context(), d, mailbox, "the password", []Key{c}); !errors.Is(err, ErrPassword) {
			t.Errorf("changed %s: %v", name, err)
		}
	}
	huge := k
	huge.Wrap.KDF.Memory = 1 << 30
	if _, err := Unlock(t.Context(), d, "mbx-1", "the password", []Key{huge}); err == nil || errors.Is(err, ErrPassword) {
		t.Errorf("a wrap that asks for a TiB of memory: %v", err)
	}
}

// Composed and decomposed forms of a character are the same password.
func TestPasswordIsNormalised(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	k := newKey(t, d, "mbx-1", "Schlu\u0308ssel zum Archiv")
	if _, err := Unlock(t.Context(), d, "mbx-1", "Schl\u00fcssel zum Archiv", []Key{k}); err != nil {
		t.Error(err)
	}
}

func TestDamageIsSeen(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	k := newKey(t, d, "mbx-1", "the password")
	ids, err := Unlock(t.Context(), d, "mbx-1", "the password", []Key{k})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789abcdef", 20_000) // five age chunks
	c := sealed(t, k, text)
	if got, err := read(t, c, ids); got != text || err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	for _, n := range []int{1, 70_000, len(c) - 100} {
		if _, err := read(t, c[:len(c)-n], ids); err == nil {
			t.Errorf("cut by %d octets: no error", n)
		}
	}
	for _, at := range []int{100, 2_000, 100_000, len(c) - 1} {
		x := bytes.Clone(c)
		x[at] ^= 1
		if _, err := read(t, x, ids); err == nil {
			t.Errorf("octet %d changed: no error", at)
		}
	}
}

// What is stored must be readable with the age library's plain API.
func TestStockAgeReadsIt(t *testing.T) {
	t.Parallel()
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	c := sealed(t, Key{Recipient: id.Recipient().String()}, "plain")
	r, err := age.Decrypt(bytes.NewReader(c), id)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := io.ReadAll(r); string(p) != "plain" || err != nil {
		t.Errorf("%q %v", p, err)
	}
}

func TestSecretOpensForEachSiteOnly(t *testing.T) {
	t.Parallel()
	var ks [3]NodeKey
	for i := range ks {
		k, err := NewNodeKey()
		if err != nil {
			t.Fatal(err)
		}
		if ks[i], err = ParseNodeKey(k.String()); err != nil {
			t.Fatal(err)
		}
	}
	c, err := SealSecret([]byte("ca key"), ks[0].Recipient(), ks[1].Recipient())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, false} {
		p, err := ks[i].OpenSecret(c)
		if (err == nil) != want || (want && string(p) != "ca key") {
			t.Errorf("node %d: %q, %v", i, p, err)
		}
	}
}

func TestDeriverWaitsForMemory(t *testing.T) {
	t.Parallel()
	d := NewDeriver(16 << 10)
	if !d.free.TryAcquire(10 << 10) {
		t.Fatal("no memory at the start")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := d.derive(ctx, "x", make([]byte, 16), GeneratedKDF); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("derivation beyond the memory bound: %v", err)
	}
	d.free.Release(10 << 10)
	var wg sync.WaitGroup
	for range 4 { // each larger than the bound: one after the other, none stuck
		wg.Go(func() {
			if _, err := d.derive(t.Context(), "x", make([]byte, 16), ChosenKDF); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !d.free.TryAcquire(16 << 10) {
		t.Error("memory not given back")
	}
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 100 {
		p := NewPassword()
		if len(p) != PasswordLength || seen[p] {
			t.Fatalf("generated %q", p)
		}
		seen[p] = true
		if err := CheckPassword(p); err != nil {
			t.Errorf("generated %q: %v", p, err)
		}
	}
	for p, want := range map[string]string{
		"short": "at least 12", strings.Repeat("x", 201): "at most 200",
		"has a\ttab in it": "U+0009", "line\r\nbreaks...": "U+000D", "\xff\xfe bad utf8....": "UTF-8",
	} {
		if err := CheckPassword(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", p, err, want)
		}
	}
	if err := CheckPassword(` "spaces' and \ quotes" `); err != nil {
		t.Error(err)
	}
}

func BenchmarkUnlock(b *testing.B) {
	d := NewDeriver(128 << 10)
	for name, kdf := range map[string]KDF{"generated": GeneratedKDF, "chosen": ChosenKDF} {
		k, err := NewKey(b.Context(), d, "mbx-1", "some password", kdf, t0)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Unlock(b.Context(), d, "mbx-1", "some password", []Key{k}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What is kept of recipients never mixes them up, and stays bounded.
func TestRecipientsAreKept(t *testing.T) {
	t.Parallel()
	var rs Recipients
	seal := func(recipient string) []byte {
		var b bytes.Buffer
		w, err := rs.Writer(&b, recipient)
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Error(err)
		}
		return b.Bytes()
	}
	var wg sync.WaitGroup
	for range 2 {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			wg.Go(func() {
				for range 20 {
					if _, err := age.Decrypt(bytes.NewReader(seal(id.Recipient().String())), id); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	for n := range maxParsed {
		rs.parsed[strconv.Itoa(n)] = nil
	}
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	seal(id.Recipient().String())
	if n := len(rs.parsed); n == 0 || n > maxParsed {
		t.Errorf("%d recipients are kept", n)
	}
	if _, err := rs.Writer(io.Discard, "age1pq1nonsense"); err == nil || rs.parsed["age1pq1nonsense"] != nil {
		t.Errorf("sealed to nonsense: %v", err)
	}
}
