package seal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The wrap record is for years: this one, and a message sealed to its key, must
// open with every later msgw.
func TestVector(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("testdata", "wrap-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Mailbox, Password, Text string
		Key                     Key
		Message                 []byte
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	ids, err := Unlock(t.Context(), NewDeriver(1<<10), v.Mailbox, v.Password, []Key{v.Key})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, v.Message, ids); err != nil || got != v.Text {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAssociatedData(t *testing.T) {
	t.Parallel()
	want := hex.EncodeToString([]byte("msgw mailbox wrap\x00mbx-1\x000123456789abcdef\x00")) + "00000001" + "00000003" + "00010000" + "04"
	if got := hex.EncodeToString(associated("mbx-1", "0123456789abcdef", 1, KDF{Time: 3, Memory: 64 << 10, Threads: 4})); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Every parameter stands in the associated data by itself: under the right key, a
// wrap with any of them changed does not open.
func TestEveryBindingCounts(t *testing.T) {
	t.Parallel()
	kek := bytes.Repeat([]byte{7}, 32)
	kdf := KDF{Time: 2, Memory: 64, Threads: 3}
	w := wrap("mbx-1", "0123456789abcdef", "the secret", kdf, make([]byte, saltSize), kek)
	if got, err := unwrap("mbx-1", "0123456789abcdef", w, kek); got != "the secret" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	for name, try := range map[string]func(w Wrap) (string, error){
		"mailbox": func(w Wrap) (string, error) { return unwrap("mbx-2", "0123456789abcdef", w, kek) },
		"key id":  func(w Wrap) (string, error) { return unwrap("mbx-1", "0123456789abcdee", w, kek) },
		"time":    func(w Wrap) (string, error) { w.KDF.Time++; return unwrap("mbx-1", "0123456789abcdef", w, kek) },
		"memory":  func(w Wrap) (string, error) { w.KDF.Memory++; return unwrap("mbx-1", "0123456789abcdef", w, kek) },
		"threads": func(w Wrap) (string, error) { w.KDF.Threads++; return unwrap("mbx-1", "0123456789abcdef", w, kek) },
		"version": func(w Wrap) (string, error) { w.Version++; return unwrap("mbx-1", "0123456789abcdef", w, kek) },
		"nonce": func(w Wrap) (string, error) {
			w.Nonce = make([]byte, 24)
			return unwrap("mbx-1", "0123456789abcdef", w, kek)
		},
		"nonce size": func(w Wrap) (string, error) { w.Nonce = nil; return unwrap("mbx-1", "0123456789abcdef", w, kek) },
	} {
		if got, err := try(w); err == nil || got != "" {
			t.Errorf("%s changed: %q, %v", name, got, err)
		}
	}
	if again := wrap("mbx-1", "0123456789abcdef", "the secret", kdf, make([]byte, saltSize), kek); bytes.Equal(again.Nonce, w.Nonce) || bytes.Equal(again.Ciphertext, w.Ciphertext) {
		t.Error("the same wrap twice")
	}
}

// sameWrap returns an active and an older key under one password, as they are after
// a password change that had both open.
func sameWrap(t *testing.T, d *Deriver, password string) []Key {
	t.Helper()
	active := newKey(t, d, "mbx-1", password)
	older := newKey(t, d, "mbx-1", "something else entirely")
	ids, err := Unlock(t.Context(), d, "mbx-1", "something else entirely", []Key{older})
	if err != nil {
		t.Fatal(err)
	}
	kek, err := d.derive(t.Context(), password, active.Wrap.Salt, active.Wrap.KDF)
	if err != nil {
		t.Fatal(err)
	}
	older.State = DecryptOnly
	older.Wrap = wrap("mbx-1", older.ID, ids[0].age.String(), active.Wrap.KDF, active.Wrap.Salt, kek)
	return []Key{older, active}
}

// A password change takes every key along that the old password opens, changes
// nothing of those it does not, and leaves the keys it was given alone.
func TestRewrapTakesAllKeysAlong(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	lost := newKey(t, d, "mbx-1", "long forgotten one")
	lost.State = DecryptOnly
	keys := append([]Key{lost}, sameWrap(t, d, "the old password")...)
	before, _ := json.Marshal(keys)
	out, err := Rewrap(t.Context(), d, "mbx-1", "the old password", "the new password", GeneratedKDF, keys)
	if err != nil {
		t.Fatal(err)
	}
	if after, _ := json.Marshal(keys); !bytes.Equal(before, after) {
		t.Error("the keys it was given were changed")
	}
	ids, err := Unlock(t.Context(), d, "mbx-1", "the new password", out)
	if err != nil || len(ids) != 2 {
		t.Fatalf("%d identities, %v", len(ids), err)
	}
	for _, k := range out[1:] {
		if got, err := read(t, sealed(t, k, "x"), ids); got != "x" || err != nil || !Unlockable(out, k.ID) {
			t.Errorf("key %s: %q %v", k.State, got, err)
		}
	}
	if Unlockable(out, lost.ID) || string(out[0].Wrap.Ciphertext) != string(lost.Wrap.Ciphertext) {
		t.Error("the key under another password was touched")
	}
	if _, err := Rewrap(t.Context(), d, "mbx-1", "the old password", "x", GeneratedKDF, out); !errors.Is(err, ErrPassword) {
		t.Errorf("the old password changes it again: %v", err)
	}
	for i, k := range out {
		if k.State != keys[i].State || k.Recipient != keys[i].Recipient || !k.Created.Equal(keys[i].Created) {
			t.Errorf("key %d: more than its wrap was changed", i)
		}
	}
}

// An older key does not log in when the active one does not open.
func TestActiveKeyMustOpen(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	keys := sameWrap(t, d, "the password")
	keys[1].Wrap.Ciphertext = bytes.Clone(keys[1].Wrap.Ciphertext)
	keys[1].Wrap.Ciphertext[0] ^= 1
	if ids, err := Unlock(t.Context(), d, "mbx-1", "the password", keys); !errors.Is(err, ErrPassword) || ids != nil {
		t.Errorf("%d identities, %v", len(ids), err)
	}
	if _, err := Unlock(t.Context(), d, "mbx-1", "the password", keys[:1]); err == nil || errors.Is(err, ErrPassword) {
		t.Errorf("no active key: %v", err)
	}
}

// An unknown mailbox costs what a wrong password costs.
func TestDecoyDerives(t *testing.T) {
	t.Parallel()
	d := NewDeriver(GeneratedKDF.Memory)
	if !d.free.TryAcquire(1) {
		t.Fatal("no memory")
	}
	done := make(chan struct{})
	go func() { d.Decoy(t.Context(), "x"); close(done) }()
	select {
	case <-done:
		t.Error("took no memory, so it derived nothing")
	case <-time.After(20 * time.Millisecond):
	}
	d.free.Release(1)
	<-done
}

// Nothing that is stored, replicated or returned as an error holds a secret.
func TestNoSecretInRecords(t *testing.T) {
	t.Parallel()
	d := NewDeriver(64 << 10)
	const password = "correct horse battery staple"
	k := newKey(t, d, "mbx-1", password)
	ids, err := Unlock(t.Context(), d, "mbx-1", password, []Key{k})
	if err != nil {
		t.Fatal(err)
	}
	secret := ids[0].age.String()
	record, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	bad := k
	bad.Wrap.KDF.Time = 1 << 20
	_, errKDF := Unlock(t.Context(), d, "mbx-1", password, []Key{bad})
	_, errWrong := Unlock(t.Context(), d, "mbx-1", password+"x", []Key{k})
	_, errParse := ParseNodeKey(secret + "x")
	for _, s := range []string{string(record), errKDF.Error(), errWrong.Error(), errParse.Error()} {
		if strings.Contains(s, password) || strings.Contains(s, secret) || strings.Contains(s, "AGE-SECRET-KEY") {
			t.Errorf("holds a secret: %q", s)
		}
	}
}

func TestSecretBounds(t *testing.T) {
	t.Parallel()
	k, err := NewNodeKey()
	if err != nil {
		t.Fatal(err)
	}
	full := bytes.Repeat([]byte("s"), maxSecret)
	c, err := SealSecret(full, k.Recipient(), k.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if p, err := k.OpenSecret(c); err != nil || !bytes.Equal(p, full) {
		t.Errorf("%d octets, %v", len(p), err)
	}
	if _, err := SealSecret(append(full, 's'), k.Recipient()); err == nil {
		t.Error("sealed what cannot be opened whole")
	}
	var b bytes.Buffer
	w, err := new(Recipients).Writer(&b, k.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write(append(full, 's'))
	w.Close()
	if p, err := k.OpenSecret(b.Bytes()); err == nil {
		t.Errorf("opened %d octets of a longer secret", len(p))
	}
	if p, err := k.OpenSecret(c[:len(c)-10]); err == nil {
		t.Errorf("opened %d octets of a secret cut short", len(p))
	}
	if _, err := SealSecret([]byte("x")); err == nil {
		t.Error("sealed to nobody")
	}
}
