package dnsplugin

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/aead/siphash"
	"github.com/miekg/dns"
)

// CookieSecret makes and checks DNS cookies. Every server of the zone has the same.
type CookieSecret [siphash.KeySize]byte

// Sizes in octets (RFC 7873 section 4, RFC 9018 section 4).
const (
	clientCookie    = 8
	serverCookie    = 16
	minServerCookie = 8
	maxServerCookie = 32
	cookieVersion   = 1
)

// How old a server cookie may be, how far its clock may be ahead, and from when on the
// client gets a new one (RFC 9018 section 4.3).
const (
	cookieLife  = time.Hour
	cookieAhead = 5 * time.Minute
	cookieRenew = 30 * time.Minute
)

// cookie is what a query says of cookies, and what is answered.
type cookie struct {
	malformed bool
	valid     bool   // the client has shown that it gets what is sent to its address
	reply     string // in hexadecimal; empty: none
}

// readCookie looks at the COOKIE option of a query, if secrets are had and it has one.
func readCookie(r *dns.Msg, client netip.Addr, secrets []CookieSecret, now time.Time) (c cookie) {
	o := r.IsEdns0()
	if o == nil || len(secrets) == 0 {
		return c
	}
	var hexed string
	for _, e := range o.Option {
		if k, ok := e.(*dns.EDNS0_COOKIE); ok {
			hexed = k.Cookie
			break // RFC 7873 section 5.2: others are ignored
		}
	}
	if hexed == "" {
		return c
	}
	raw, err := hex.DecodeString(hexed)
	if err != nil || len(raw) != clientCookie && (len(raw) < clientCookie+minServerCookie || len(raw) > clientCookie+maxServerCookie) {
		return cookie{malformed: true} // RFC 7873 section 5.2.2
	}
	server := raw[clientCookie:]
	if len(server) == serverCookie && server[0] == cookieVersion {
		made := binary.BigEndian.Uint32(server[4:])
		age := time.Duration(int32(uint32(now.Unix())-made)) * time.Second // serial arithmetic, RFC 9018 section 4.3
		if age <= cookieLife && age >= -cookieAhead {
			for i, s := range secrets {
				if s.hash(raw[:clientCookie], server[:8], client) == [8]byte(server[8:]) {
					c.valid = true
					if i == 0 && age < cookieRenew {
						c.reply = hexed
					}
					break
				}
			}
		}
	}
	if c.reply == "" {
		c.reply = hex.EncodeToString(secrets[0].make(raw[:clientCookie], client, now))
	}
	return c
}

// make returns the whole cookie for a client (RFC 9018 section 4).
func (s CookieSecret) make(client []byte, addr netip.Addr, now time.Time) []byte {
	b := make([]byte, 0, clientCookie+serverCookie)
	b = append(b, client...)
	b = append(b, cookieVersion, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(now.Unix()))
	h := s.hash(client, b[clientCookie:], addr)
	return append(b, h[:]...)
}

// hash binds client cookie, version, time and address together (RFC 9018 section 4.4).
func (s CookieSecret) hash(client, head []byte, addr netip.Addr) (h [8]byte) {
	var buf [clientCookie + 8 + 16]byte
	b := append(append(buf[:0], client...), head...)
	b = append(b, addr.AsSlice()...)
	key := [siphash.KeySize]byte(s)
	binary.LittleEndian.PutUint64(h[:], siphash.Sum64(b, &key))
	return h
}
