// Package mtasts writes an MTA-STS policy (RFC 8461) and serves it over HTTPS.
package mtasts

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Policy is what senders are told to hold the zone's mail exchangers to.
type Policy struct {
	Mode   string   // none, testing or enforce
	MaxAge uint32   // seconds that senders may keep it
	MX     []string // host names, without a final dot
}

// Text is the policy as it is served (RFC 8461 section 3.2). It depends on the fields and
// their order alone, so that every node serves the same.
func (p Policy) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: STSv1\r\nmode: %s\r\n", p.Mode)
	for _, mx := range p.MX {
		fmt.Fprintf(&b, "mx: %s\r\n", mx)
	}
	fmt.Fprintf(&b, "max_age: %d\r\n", p.MaxAge)
	return b.String()
}

// ID tells versions of the policy apart: 32 letters and digits (RFC 8461 section 3.1).
func (p Policy) ID() string {
	sum := sha256.Sum256([]byte(p.Text()))
	return hex.EncodeToString(sum[:16])
}
