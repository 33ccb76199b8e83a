package lab

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
	"msgw/internal/node"
	"msgw/internal/shadow"
)

// demoTime bounds the whole story.
const demoTime = 5 * time.Minute

// Announce says where everything is.
func (l *Lab) Announce() {
	f := l.Describe()
	for _, n := range f.Nodes {
		if n.Role == "witness" {
			l.say("%s   votes at %s", n.Name, n.Peer)
			continue
		}
		l.say("%s   SMTP %s   POP3 %s   POP3S %s   DNS %s   metrics http://%s/metrics", n.Host, n.SMTP, n.POP3, n.POP3S, n.DNS, n.Metrics)
	}
	for i, m := range f.Mailboxes {
		if i == 5 {
			l.say("and %d more in lab.json", len(f.Mailboxes)-i)
			break
		}
		l.say("mailbox %s   password %s", m.Address, m.Password)
	}
	l.say("trust   %s", f.CA)
	l.say("tools   %s/%s   msgw status --dir %s", l.opt.Dir, fileName, f.Nodes[0].Dir)
	l.say("stop with Ctrl-C")
}

func (l *Lab) say(format string, args ...any) {
	l.progress("")
	fmt.Fprintf(l.opt.Out, format+"\n", args...)
}

// ledger records what was sent, acknowledged and fetched.
type ledger struct {
	mu      sync.Mutex
	sum     map[string]int       // SHA-256 of what was sent -> its number
	acked   map[int]bool         // by number
	fetched map[int]int          // how often, by number
	ids     map[string]time.Time // message ids of acknowledgements
	corrupt int
	errs    []error
}

// Demo plays the story and reports whether it came true.
func (l *Lab) Demo(ctx context.Context, messages int) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	f := l.Describe()
	one, two := f.Nodes[0], f.Nodes[1]
	l.say("two sites are up: %s and %s", one.Host, two.Host)
	for _, n := range []NodeRow{one, two} {
		mx, err := lookupMX(ctx, n.DNS)
		if err != nil {
			return false, err
		}
		l.say("%s answers: %s", n.Name, formatMX(mx))
	}
	trust, err := l.trust()
	if err != nil {
		return false, err
	}

	led := &ledger{sum: map[string]int{}, acked: map[int]bool{}, fetched: map[int]int{}, ids: map[string]time.Time{}}
	reports := make([][]byte, messages)
	for i := range reports {
		reports[i] = report.New(1, i, 2<<10+i%40<<10)
		led.sum[digest(reports[i])] = i
	}
	l.say("sending %d journal reports by MX, fetching them by POP3 with TLS at both sites", messages)

	// The archive goes round for as long as mail is sent, and until all is fetched.
	actx, stopArchive := context.WithCancel(ctx)
	defer stopArchive()
	var archives sync.WaitGroup
	for _, n := range []NodeRow{one, two} {
		archives.Go(func() { l.archive(actx, n, trust, led) })
	}

	kill := make(chan struct{})
	sent := make(chan error, 1)
	go func() { sent <- l.send(ctx, f, trust, reports, led, kill) }()

	select {
	case <-kill:
	case err := <-sent:
		return false, fmt.Errorf("sending ended early: %w", err)
	}
	waiting := 0
	if s, err := l.Admin(one.Name).Status(ctx); err == nil {
		waiting = s.Waiting.Messages
	}
	if err := l.KillNode(one.Name); err != nil {
		return false, err
	}
	killed := time.Now()
	if err := os.RemoveAll(one.Dir); err != nil {
		return false, err
	}
	l.say("site 1 is lost for good in mid-stream: killed with SIGKILL, its state directory deleted; about %d messages waited there", waiting)
	if err := demoted(ctx, two.DNS, one.Host); err != nil {
		return false, err
	}
	mx, err := lookupMX(ctx, two.DNS)
	if err != nil {
		return false, err
	}
	l.say("after %.0f s %s answers: %s", time.Since(killed).Seconds(), two.Name, formatMX(mx))
	if err := <-sent; err != nil {
		return false, err
	}
	l.say("the sender carried on: all %d are acknowledged", messages)
	copies, err := l.Admin(two.Name).Adopt(ctx, one.Name)
	if err != nil {
		return false, err
	}
	l.say("an operator says `msgw node adopt %s`: %d messages of site 1 are handed over at site 2, from their copies", one.Name, copies.Held)
	err = l.await(ctx, "the archive", func(ctx context.Context) string { return l.unfetched(ctx, led) })
	if err == nil {
		err = l.replace(ctx, one, two)
	}
	stopArchive()
	archives.Wait()
	return l.verdict(led, messages) && err == nil, err
}

// replace makes the configuration changeable again at the survivor, puts a new machine in
// the place of the lost site, and waits until both sites keep copies for each other.
func (l *Lab) replace(ctx context.Context, lost, survivor NodeRow) error {
	began := time.Now()
	s, err := l.Admin(survivor.Name).Status(ctx)
	if err != nil {
		return err
	}
	if !s.Quorum { // a witness would have kept it
		r, err := l.Admin(survivor.Name).Recover(ctx, admin.Recover{Names: []string{lost.Name}})
		if err != nil {
			return err
		}
		l.say("`msgw recover %s`: %s goes on alone in epoch %d, and the configuration can be changed again", lost.Name, survivor.Name, r.Epoch)
	}
	inv, err := l.Admin(survivor.Name).Invite(ctx, admin.Invite{Replaces: lost.Name, Life: 10 * time.Minute})
	if err != nil {
		return err
	}
	cfg, err := l.config(lost)
	if err == nil {
		err = node.Join(ctx, cfg, inv.Token)
	}
	if err == nil {
		err = l.StartNode(lost.Name)
	}
	if err != nil {
		return err
	}
	if err := l.await(ctx, "the replacement", func(ctx context.Context) string {
		for _, n := range []NodeRow{lost, survivor} {
			s, err := l.Admin(n.Name).Status(ctx)
			switch {
			case err != nil:
				return err.Error()
			case !s.Quorum || len(s.Voters) < len(l.file.Nodes):
				return n.Name + ": not all nodes vote"
			case s.Copies.State != string(shadow.Sync):
				return n.Name + " is in " + s.Copies.State
			}
		}
		return ""
	}); err != nil {
		return err
	}
	l.say("`msgw invite --replace %s`, then `msgw join TOKEN` on a new machine: after %.0f s both sites vote and are in SYNC", lost.Name, time.Since(began).Seconds())
	return nil
}

func (l *Lab) trust() (*x509.CertPool, error) {
	b, err := os.ReadFile(l.file.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate", l.file.CA)
	}
	return pool, nil
}

// send sends every report until it is acknowledged, as a mail server's queue would.
// It closes kill when half of them are.
func (l *Lab) send(ctx context.Context, f File, trust *x509.CertPool, reports [][]byte, led *ledger, kill chan struct{}) error {
	_, port, err := net.SplitHostPort(f.Nodes[0].SMTP)
	if err != nil {
		return err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	s, err := sender.New(sender.Config{Servers: []string{f.Nodes[0].DNS, f.Nodes[1].DNS}, Helo: "journal.example.net",
		Address: func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, uint16(p)) },
		TLS:     &tls.Config{RootCAs: trust}, RequireTLS: true,
		Timeouts: sender.Timeouts{Query: 500 * time.Millisecond, Connect: 5 * time.Second, Reply: 10 * time.Second, Block: 10 * time.Second, Final: 30 * time.Second}})
	if err != nil {
		return err
	}
	work := make(chan int)
	var half sync.Once
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range work {
				env := sender.Envelope{To: []string{f.Mailboxes[i%len(f.Mailboxes)].Address}}
				if i%2 == 1 { // as Exchange Online does
					env.Chunks = &sender.Chunks{Sizes: []int{8192}}
				}
				if err := sendUntilTaken(ctx, s, env, reports[i]); err != nil {
					led.fail(err)
					continue
				}
				if led.ack(i) >= len(reports)/2 {
					half.Do(func() { close(kill) })
				}
			}
		})
	}
	for i := range reports {
		select {
		case work <- i:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
	return errors.Join(led.errs...)
}

// sendUntilTaken tries again after anything temporary.
func sendUntilTaken(ctx context.Context, s *sender.Sender, env sender.Envelope, msg []byte) error {
	for {
		_, err := s.Send(ctx, env, msg)
		var se *sender.Error
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &se) || !se.Temporary && !se.MaybeAccepted:
			return fmt.Errorf("refused for good: %w", err)
		}
		if !pause(ctx, 300*time.Millisecond) {
			return fmt.Errorf("not taken in time: %w", err)
		}
	}
}

func (led *ledger) ack(i int) int {
	led.mu.Lock()
	defer led.mu.Unlock()
	led.acked[i] = true
	return len(led.acked)
}

func (led *ledger) fail(err error) {
	led.mu.Lock()
	defer led.mu.Unlock()
	led.errs = append(led.errs, err)
}

func digest(b []byte) string {
	h := sha256.Sum256(b)
	return string(h[:])
}

// archive empties the mailboxes of one site again and again.
func (l *Lab) archive(ctx context.Context, n NodeRow, trust *x509.CertPool, led *ledger) {
	for pause(ctx, archiveInterval) {
		for _, m := range l.file.Mailboxes {
			cfg := archive.Config{Address: n.POP3S, User: m.ID, Password: m.Password, Timeout: 20 * time.Second,
				TLS: &tls.Config{RootCAs: trust, ServerName: n.Host}}
			// A site that is down, or dies meanwhile, is part of the story.
			_, _ = archive.Fetch(ctx, cfg, true, func(_ string, msg []byte) error {
				led.mu.Lock()
				defer led.mu.Unlock()
				if i, ok := led.sum[digest(msg)]; ok {
					led.fetched[i]++
				} else {
					led.corrupt++
				}
				return nil
			})
		}
	}
}

// archiveInterval is long enough that mail waits when a site is lost.
const archiveInterval = 2 * time.Second

// pause waits; false means that ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// unfetched says what is still to be fetched.
func (l *Lab) unfetched(ctx context.Context, led *ledger) string {
	led.mu.Lock()
	missing := 0
	for i := range led.acked {
		if led.fetched[i] == 0 {
			missing++
		}
	}
	led.mu.Unlock()
	if missing > 0 {
		return fmt.Sprintf("%d acknowledged reports are not fetched yet", missing)
	}
	for _, n := range l.file.Nodes {
		if n.Role != "site" || l.pid(n.Name) == 0 {
			continue // a lost one
		}
		s, err := l.Admin(n.Name).Status(ctx)
		if err != nil {
			return err.Error()
		}
		if s.Waiting.Messages > 0 {
			return fmt.Sprintf("%d wait at %s", s.Waiting.Messages, n.Name)
		}
	}
	return ""
}

// verdict prints the last line.
func (l *Lab) verdict(led *ledger, messages int) bool {
	led.mu.Lock()
	defer led.mu.Unlock()
	lost, duplicates := 0, 0
	for i := range led.acked {
		if led.fetched[i] == 0 {
			lost++
		}
	}
	for _, n := range led.fetched {
		duplicates += n - 1
	}
	l.say("sent %d, acknowledged %d, fetched %d, lost %d, duplicates %d, corrupted %d",
		messages, len(led.acked), len(led.fetched), lost, duplicates, led.corrupt)
	return lost == 0 && led.corrupt == 0 && len(led.acked) == messages
}

// lookupMX asks one name server for the zone's MX.
func lookupMX(ctx context.Context, server string) ([]*dns.MX, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(Zone), dns.TypeMX)
	r, _, err := (&dns.Client{Timeout: 2 * time.Second}).ExchangeContext(ctx, m, server)
	if err != nil {
		return nil, err
	}
	var mx []*dns.MX
	for _, rr := range r.Answer {
		if x, ok := rr.(*dns.MX); ok {
			mx = append(mx, x)
		}
	}
	slices.SortFunc(mx, func(a, b *dns.MX) int { return int(a.Preference) - int(b.Preference) })
	return mx, nil
}

func formatMX(mx []*dns.MX) string {
	text := ""
	for i, x := range mx {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("MX %d %s", x.Preference, x.Mx)
	}
	return text
}

// demoted waits until a host stands last.
func demoted(ctx context.Context, server, host string) error {
	for {
		mx, err := lookupMX(ctx, server)
		if err == nil {
			for _, x := range mx {
				if x.Mx == dns.Fqdn(host) && x.Preference >= 100 {
					return nil
				}
			}
		}
		if !pause(ctx, 200*time.Millisecond) {
			return fmt.Errorf("%s was not demoted: %w", host, ctx.Err())
		}
	}
}
