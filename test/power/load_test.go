//go:build power

package power

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/lab/archive"
)

// view is what was seen of a machine since it was switched on.
type view struct {
	mu     sync.Mutex
	known  map[string]int   // which message a UIDL is, of those that were fetched
	there  map[int]int      // how many UIDLs a message has
	broken map[string]error // by UIDL: what could not be fetched
	wrong  []error          // fetched, but not what was sent
}

func newView() *view {
	return &view{known: map[string]int{}, there: map[int]int{}, broken: map[string]error{}}
}

// replyTime bounds every wait for the machine, which is slow.
const replyTime = time.Minute

// send sends one message after the other to a node until ctx ends. It returns the first
// refusal that no sender could have mended by trying again.
func (r *rig) send(ctx context.Context, m *machine, rng *rand.Rand) error {
	for ctx.Err() == nil {
		err := r.session(ctx, m, rng)
		var refusal *smtp.SMTPError
		if errors.As(err, &refusal) && !refusal.Temporary() {
			return fmt.Errorf("refused for good: %w", err)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

// session sends up to ten messages over one connection.
func (r *rig) session(ctx context.Context, m *machine, rng *rand.Rand) error {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", m.at[rng.IntN(len(m.at))]["smtp"])
	if err != nil {
		return err
	}
	s := smtp.NewClient(c)
	defer s.Close()
	s.CommandTimeout, s.SubmissionTimeout = replyTime, replyTime
	if err := s.Hello("journal.example.net"); err != nil {
		return err
	}
	boxes := r.hardware.file.Mailboxes
	for range 10 {
		if ctx.Err() != nil {
			return nil
		}
		i, msg := r.ledger.write(rng)
		if err := s.Mail("", nil); err != nil {
			return err
		}
		if err := s.Rcpt(boxes[rng.IntN(len(boxes))].Address, nil); err != nil {
			return err
		}
		w, err := s.Data()
		if err != nil {
			return err
		}
		if _, err := w.Write(msg); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		r.ledger.ack(i)
	}
	return s.Quit()
}

// pop3 logs in at a mailbox of a node.
func (r *rig) pop3(ctx context.Context, m *machine, node, box int) (*archive.Conn, []archive.Message, error) {
	n, b := r.hardware.file.Nodes[node], r.hardware.file.Mailboxes[box]
	c, err := archive.Dial(ctx, archive.Config{Address: m.at[node]["pop3s"], User: b.ID, Password: b.Password, Timeout: replyTime,
		TLS: &tls.Config{RootCAs: r.roots, ServerName: n.Host}})
	if err != nil {
		return nil, nil, err
	}
	err = c.Login()
	var list []archive.Message
	if err == nil {
		list, err = c.Messages()
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, list, nil
}

// look fetches what is new in a mailbox of a node.
func (r *rig) look(ctx context.Context, c *archive.Conn, list []archive.Message, v *view) error {
	for _, x := range list {
		v.mu.Lock()
		_, known := v.known[x.UIDL]
		broken := v.broken[x.UIDL] != nil
		v.mu.Unlock()
		if known || broken {
			continue
		}
		msg, err := c.Retrieve(x)
		if err != nil && ctx.Err() != nil {
			return err
		}
		var refusal *archive.Error
		v.mu.Lock()
		switch i, wrong := 0, error(nil); {
		case err != nil:
			v.broken[x.UIDL] = err
			if errors.As(err, &refusal) {
				err = nil // the others can be fetched
			}
		default:
			if i, wrong = r.ledger.identify(msg); wrong != nil {
				v.wrong = append(v.wrong, wrong)
				v.broken[x.UIDL] = wrong
				break
			}
			v.known[x.UIDL] = i
			v.there[i]++
		}
		v.mu.Unlock()
		if err != nil {
			return fmt.Errorf("message %s: %w", x.UIDL, err)
		}
	}
	return nil
}

// all fetches whatever is new in any mailbox of any node.
func (r *rig) all(ctx context.Context, m *machine, v *view) error {
	var wg sync.WaitGroup
	boxes := len(r.hardware.file.Mailboxes)
	errs := make([]error, len(r.hardware.file.Nodes)*boxes)
	for k := range errs {
		wg.Go(func() {
			c, list, err := r.pop3(ctx, m, k/boxes, k%boxes)
			if err != nil {
				errs[k] = err
				return
			}
			defer c.Close()
			if errs[k] = r.look(ctx, c, list, v); errs[k] == nil {
				errs[k] = c.Quit()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// empty goes round the mailboxes until ctx ends, and deletes some of what it finds.
func (r *rig) empty(ctx context.Context, m *machine, v *view, rng *rand.Rand) {
	for ctx.Err() == nil {
		node, box := rng.IntN(len(r.hardware.file.Nodes)), rng.IntN(len(r.hardware.file.Mailboxes))
		// The machine dies meanwhile.
		_ = r.remove(ctx, m, node, box, v, rng)
		select {
		case <-time.After(time.Duration(rng.IntN(300)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// remove fetches what is new in a mailbox and deletes a share of all that is there.
func (r *rig) remove(ctx context.Context, m *machine, node, box int, v *view, rng *rand.Rand) error {
	c, list, err := r.pop3(ctx, m, node, box)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := r.look(ctx, c, list, v); err != nil {
		return err
	}
	share := 3 + rng.IntN(8) // of ten
	var gone []int
	for _, x := range list {
		v.mu.Lock()
		i, known := v.known[x.UIDL]
		v.mu.Unlock()
		if !known || rng.IntN(10) >= share {
			continue
		}
		if err := c.Delete(x); err != nil {
			return err
		}
		gone = append(gone, i)
	}
	r.ledger.set(maybe, gone)
	if err := c.Quit(); err != nil {
		return err
	}
	r.ledger.set(deleted, gone)
	return nil
}
