package raftstore

import "time"

// SetCopies changes how the sites keep copies for each other.
type SetCopies struct {
	Copies Copies `json:"copies"`
}

func (SetCopies) op() string { return "copies" }
func (ch SetCopies) apply(s *State, _ Command) error {
	c := ch.Copies
	if err := c.Policy.check(); err != nil {
		return err
	}
	for _, d := range []struct {
		name              string
		value             time.Duration
		shortest, longest time.Duration
	}{
		{"refused", c.Refused, 100 * time.Millisecond, time.Minute},
		{"silent", c.Silent, 2 * time.Second, 10 * time.Minute},
		// A sender waits 10 minutes for the answer to its message (RFC 5321 section 4.5.3.2.6).
		{"wait", c.Wait, time.Second, 9 * time.Minute},
		{"adopt", c.Adopt, 5 * time.Second, 30 * 24 * time.Hour},
		{"adopt-confirmed", c.AdoptConfirmed, 5 * time.Second, 30 * 24 * time.Hour},
		{"return", c.Return, time.Second, time.Hour},
	} {
		if d.value != 0 && (d.value < d.shortest || d.value > d.longest) {
			return rejectf("invalid", "%s %v: expected %v to %v, or 0 for the default", d.name, d.value, d.shortest, d.longest)
		}
	}
	if c.Bandwidth != 0 && c.Bandwidth < 1<<10 {
		return rejectf("invalid", "bandwidth %d: expected at least 1024 octets per second, or 0 for no bound", c.Bandwidth)
	}
	s.Copies = c
	return nil
}

func (p Policy) check() error {
	switch p {
	case "", Available, Strict:
		return nil
	}
	return rejectf("invalid", "policy %q: expected available or strict", string(p))
}

// SetPolicy gives a mailbox a policy of its own, or with an empty one that of Copies.
type SetPolicy struct {
	ID     string `json:"id"`
	Policy Policy `json:"policy"`
}

func (SetPolicy) op() string { return "mailbox.policy" }
func (ch SetPolicy) apply(s *State, _ Command) error {
	m, ok := s.Mailboxes[ch.ID]
	if !ok || m.Status == Retired {
		return rejectf("missing", "no mailbox %s", ch.ID)
	}
	if err := ch.Policy.check(); err != nil {
		return err
	}
	m.Policy = ch.Policy
	s.Mailboxes[ch.ID] = m
	return nil
}
