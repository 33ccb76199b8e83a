package smtpnode

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"msgw/internal/journal"
	"msgw/internal/lineproto/dialog"
)

// dialogOptions are what the scripts of testdata/dialogs may set with OPTION.
var dialogOptions = map[string]func(o *Options, value string) error{
	"max-errors":         func(o *Options, v string) error { return number(&o.MaxErrors, v) },
	"max-idle":           func(o *Options, v string) error { return number(&o.MaxIdle, v) },
	"max-recipients":     func(o *Options, v string) error { return number(&o.MaxRecipients, v) },
	"max-size":           func(o *Options, v string) error { return number(&o.MaxSize, v) },
	"per-address":        func(o *Options, v string) error { return number(&o.Limits.PerAddress, v) },
	"idle":               func(o *Options, v string) (err error) { o.Deadlines.Idle, err = time.ParseDuration(v); return err },
	"strict":             func(o *Options, _ string) error { o.Mailboxes = fakeMailboxes{strict: true}; return nil },
	"allow":              restricting(func(r *Restrictions, v string) (err error) { r.Allow, err = ParseAllow(v); return err }),
	"require-tls":        restricting(func(r *Restrictions, v string) error { r.RequireTLS = v == "yes"; return nil }),
	"client-name":        restricting(func(r *Restrictions, v string) error { r.ClientNames = []string{v}; return nil }),
	"mailbox-size":       restricting(func(r *Restrictions, v string) error { return number(&r.MaxSize, v) }),
	"mailbox-recipients": restricting(func(r *Restrictions, v string) error { return number(&r.MaxRecipients, v) }),
	"reject-dots":        restricting(func(r *Restrictions, v string) error { r.RejectDots = v == "yes"; return nil }),
	"no-tls":             func(o *Options, _ string) error { o.TLS = nil; return nil },

	// What the test itself does.
	"store":  nil, // what is the matter with it from the start, as STORE says
	"bare":   nil, // plays from the first octet, in the clear
	"only":   nil, // "plain" or "tls"
	"others": nil, // that many connections are open already
}

// restricting makes an option of a restriction of mbx-1.
func restricting(set func(r *Restrictions, v string) error) func(*Options, string) error {
	return func(o *Options, v string) error {
		m := o.Mailboxes.(fakeMailboxes)
		r := m.restrict["mbx-1"]
		err := set(&r, v)
		m.restrict = map[string]Restrictions{"mbx-1": r}
		o.Mailboxes = m
		return err
	}
}

func number[T int | int64](p *T, v string) error {
	n, err := strconv.ParseInt(v, 10, 64)
	*p = T(n)
	return err
}

// exchange is one script played against one server.
type exchange struct {
	*rig
	stored map[string][]string // what the script says is stored, by mailbox
	traces map[string][]string // what it says the traces hold
}

// words are what scripts may ask of the test. STORED "octets" says that mbx-1 holds
// that message, behind those named before, and STORED mbx-2 "octets" that mbx-2
// does; in the end the store must hold these messages and no other. TRACE mbx-1
// "octets" says that the trace of a message of mbx-1 holds these octets. STORE sets
// what is the matter with the store, STOP stops the server.
func (x *exchange) words() map[string]func(string) error {
	return map[string]func(string) error{
		"STORED": func(arg string) error {
			mailbox := "mbx-1"
			if first, rest, _ := strings.Cut(arg, " "); strings.HasPrefix(first, "mbx-") || first == "strict" {
				mailbox, arg = first, rest
			}
			msg, err := dialog.Octets(arg)
			x.stored[mailbox] = append(x.stored[mailbox], string(msg))
			return err
		},
		"TRACE": func(arg string) error {
			mailbox, arg, _ := strings.Cut(arg, " ")
			part, err := dialog.Octets(arg)
			x.traces[mailbox] = append(x.traces[mailbox], string(part))
			return err
		},
		"STORE": x.trouble,
		"STOP":  func(string) error { go x.stop(); return nil },
	}
}

func (x *exchange) trouble(arg string) error {
	full := fmt.Errorf("low: %w", journal.ErrDiskFull)
	switch arg {
	case "works":
		x.store.set(nil, nil, nil)
	case "commit fails":
		x.store.set(fmt.Errorf("/var/lib/secret"), nil, nil)
	case "commit finds no room":
		x.store.set(full, nil, nil)
	case "has no room":
		x.store.set(nil, full, nil)
	case "has failed":
		x.store.set(nil, nil, journal.ErrFailed)
	case "has no second copy":
		x.store.mu.Lock()
		x.store.single = fmt.Errorf("state is DEGRADED")
		x.store.mu.Unlock()
	default:
		return fmt.Errorf("the store cannot be told %q", arg)
	}
	return nil
}

// Every script is played in the clear and over TLS, unless it says otherwise, and
// all together they make the server say all that it can say.
func TestDialogs(t *testing.T) {
	t.Parallel()
	scripts, err := dialog.LoadAll("testdata/dialogs")
	if err != nil {
		t.Fatal(err)
	}
	greeting, err := dialog.Parse("greeting", "S: 220 mx.example.org ESMTP msgw\n")
	if err != nil {
		t.Fatal(err)
	}
	starttls, err := dialog.Load("testdata/dialogs/starttls.part")
	if err != nil {
		t.Fatal(err)
	}
	heard := &lines{}
	t.Cleanup(func() { heard.everyReply(t) }) // when all have been played
	for _, s := range scripts {
		only, _ := s.Option("only")
		_, bare := s.Option("bare")
		for _, transport := range []string{"plain", "tls"} {
			before := []*dialog.Script{greeting}
			switch {
			case only != "" && only != transport, bare && transport == "tls":
				continue
			case bare:
				before = nil
			case transport == "tls":
				before = append(before, starttls)
			}
			t.Run(s.Name+"/"+transport, func(t *testing.T) {
				t.Parallel()
				playDialog(t, heard.add, s, before...)
			})
		}
	}
}

// playDialog plays a script against a server of its own, behind others.
func playDialog(t *testing.T, heard func(string), s *dialog.Script, before ...*dialog.Script) {
	t.Helper()
	metrics := prometheus.NewRegistry()
	x := &exchange{stored: map[string][]string{}, traces: map[string][]string{}}
	x.rig = start(t, func(o *Options) {
		o.Metrics = metrics
		for _, name := range s.Options() {
			set, ok := dialogOptions[name]
			if !ok {
				t.Fatalf("%s: no option %s", s.Name, name)
			}
			value, _ := s.Option(name)
			if set == nil {
				continue
			}
			if err := set(o, value); err != nil {
				t.Fatalf("%s: option %s: %v", s.Name, name, err)
			}
		}
	})
	if what, ok := s.Option("store"); ok {
		if err := x.trouble(what); err != nil {
			t.Fatal(err)
		}
	}
	if n, ok := s.Option("others"); ok {
		var others int
		if err := number(&others, n); err != nil {
			t.Fatal(err)
		}
		for range others {
			x.dial().expect("220")
		}
	}
	p := dialog.New(x.dial().Conn)
	p.TLS = &tls.Config{InsecureSkipVerify: true}
	p.Do, p.Heard = x.words(), heard
	err := p.Play(append(slices.Clone(before), s)...)
	if err == nil {
		err = p.End()
	}
	p.Conn.Close()
	if err != nil {
		t.Error(err)
	}
	if err := x.stop(); err != nil {
		t.Error(err)
	}
	for _, mailbox := range []string{"mbx-1", "mbx-2", "strict"} {
		traces, got := x.plaintext(mailbox, 0)
		if !slices.Equal(got, x.stored[mailbox]) {
			t.Errorf("%s holds %.200q, want %.200q", mailbox, got, x.stored[mailbox])
		}
		for _, part := range x.traces[mailbox] {
			if !strings.Contains(strings.Join(traces, ""), part) {
				t.Errorf("the traces of %s lack %q: %q", mailbox, part, traces)
			}
		}
	}
}
