package node

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"msgw/dnsplugin"
)

// cookieSecrets gives the secrets of DNS cookies. Every site has the key of the cluster's
// CA and derives the same from it, so nothing else has to be kept or replicated.
type cookieSecrets struct {
	n *Node

	mu     sync.Mutex
	sealed string // the CA's key that they were derived from, as it is stored
	period int64
	made   []dnsplugin.CookieSecret
}

// cookiePeriod is how long a secret makes cookies. It is accepted for one period more
// (RFC 7873 section 7.1 asks for a new one every 36 days at least).
const cookiePeriod = 7 * 24 * time.Hour

// get returns the secrets of now, the one that makes cookies first; none while the CA's
// key cannot be opened.
func (c *cookieSecrets) get() []dnsplugin.CookieSecret {
	sealed := string(c.n.store.State().CA.Key)
	period := time.Now().Unix() / int64(cookiePeriod/time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed == sealed && c.period == period {
		return c.made
	}
	c.sealed, c.period, c.made = sealed, period, nil
	key, err := c.n.id.node.OpenSecret([]byte(sealed))
	for _, p := range []int64{period, period - 1} {
		var raw []byte
		if err == nil {
			raw, err = hkdf.Key(sha256.New, key, nil, fmt.Sprintf("msgw dns cookie %s %d", c.n.id.Cluster, p), len(dnsplugin.CookieSecret{}))
		}
		if err == nil {
			c.made = append(c.made, dnsplugin.CookieSecret(raw))
		}
	}
	if err != nil {
		c.made = nil
		c.n.log.Warn("no DNS cookies are answered: the key of the cluster's CA cannot be opened", "err", err)
	}
	return c.made
}
