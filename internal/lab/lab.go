// Package lab runs a two-site appliance on one machine: each node a process of its
// own, on a loopback address of its own, found by the others and by mail programs
// as in earnest. Its nodes die with it, whatever ends it.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"msgw/internal/admin"
	"msgw/internal/node"
)

// Options of a lab.
type Options struct {
	Program       string // absolute path of the msgw to run
	Dir           string // kept; empty: a temporary one, removed at the end
	Net           string // first three octets of the loopback addresses, as in 127.0.0
	Witness       bool
	StandardPorts bool // 25, 53, 110, 995: needs root
	Mailboxes     int
	ACME          ACME
	Out           io.Writer
	Terminal      bool // Out can rewrite a line
}

// ACME says where the lab's nodes get publicly trusted certificates from; no
// directory: from the lab's own CA only, or as an earlier lab in the directory was told.
type ACME struct {
	Directory  string // URL
	Root       string // PEM that the directory's own certificate is checked against; empty: the system's
	IssuerRoot string // PEM that the certificates it issues are checked against; empty: the system's
}

const (
	fileName   = "lab.json"
	lockName   = "lab.lock"
	socketName = "lab.sock"
	caName     = "ca.pem"
	issuerName = "acme-issuer.pem" // ACME.IssuerRoot, for a lab that is resumed
)

// Lab is a running lab.
type Lab struct {
	opt  Options
	temp bool
	lock *os.File // nil while the directory is not ours
	procs

	file File // as laid out; does not change once the lab is up

	writing sync.Mutex // of lab.json
}

// Start brings a lab up and returns when everything answers. The caller must Close
// it.
func Start(ctx context.Context, opt Options) (l *Lab, err error) {
	l = &Lab{opt: opt, temp: opt.Dir == ""}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
			l = nil
		}
	}()
	if err := l.claim(); err != nil {
		return l, err
	}
	l.startThread()
	if err := l.load(); err != nil {
		return l, err
	}
	l.layOut()
	fresh := len(l.file.Mailboxes) == 0
	if err := l.bringUp(ctx, fresh); err != nil {
		return l, err
	}
	return l, l.write()
}

// claim takes the directory.
func (l *Lab) claim() (err error) {
	if l.temp {
		if l.opt.Dir, err = os.MkdirTemp("", "msgw-lab-"); err != nil {
			return err
		}
	} else {
		if l.opt.Dir, err = filepath.Abs(l.opt.Dir); err != nil {
			return err
		}
		if err := os.MkdirAll(l.opt.Dir, 0o700); err != nil {
			return &node.OperatorError{Err: err}
		}
		entries, err := os.ReadDir(l.opt.Dir)
		if err != nil {
			return &node.OperatorError{Err: err}
		}
		if len(entries) > 0 && !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == lockName }) {
			return &node.OperatorError{Err: fmt.Errorf("%s is not empty and holds no lab", l.opt.Dir), Hint: "name an empty directory, or one that a lab was run in"}
		}
	}
	lock, err := os.OpenFile(filepath.Join(l.opt.Dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return &node.OperatorError{Err: err}
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return &node.OperatorError{Err: fmt.Errorf("another lab runs in %s", l.opt.Dir), Hint: "stop it, or name another directory"}
	}
	l.lock = lock // the directory is ours
	return nil
}

// bringUp starts the nodes that there are, makes those that are missing, and waits
// until all of them answer.
func (l *Lab) bringUp(ctx context.Context, fresh bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	first := l.file.Nodes[0]
	var missing []NodeRow
	for i, n := range l.file.Nodes {
		cfg, err := l.config(n)
		if err != nil {
			return err
		}
		if fresh && i == 0 {
			if err := node.Init(cfg, node.InitOptions{Zone: Zone, MXMode: "tier"}); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
		// A site that was wiped since is started all the same: it refuses, and why.
		if _, err := os.Stat(n.Dir); errors.Is(err, fs.ErrNotExist) && (fresh || n.Role == "witness") {
			missing = append(missing, n)
			continue
		}
		if err := l.StartNode(n.Name); err != nil {
			return err
		}
	}
	if err := l.await(ctx, "a quorum", l.leads); err != nil {
		return err
	}
	if err := l.setACME(ctx); err != nil {
		return err
	}
	for _, n := range missing {
		cfg, err := l.config(n)
		if err != nil {
			return err
		}
		inv, err := l.Admin(first.Name).Invite(ctx, admin.Invite{Role: n.Role, Life: 10 * time.Minute})
		if err == nil {
			err = node.Join(ctx, cfg, inv.Token)
		}
		if err == nil {
			err = l.StartNode(n.Name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	if err := l.await(ctx, "every node", l.answers); err != nil {
		return err
	}
	return l.makeMailboxes(ctx)
}

// Admin returns the operator's client of a node.
func (l *Lab) Admin(name string) *admin.Client {
	return admin.NewClient(filepath.Join(l.opt.Dir, name), node.SocketFile)
}

// await waits until ok says nothing is missing any more.
func (l *Lab) await(ctx context.Context, what string, ok func(context.Context) (missing string)) error {
	for {
		missing := ok(ctx)
		if missing == "" {
			l.progress("")
			return nil
		}
		if name, why := l.ended(); name != "" {
			return fmt.Errorf("%s ended: %s", name, why)
		}
		l.progress("waiting for " + what + ": " + missing)
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s did not come up: %s: %w", what, missing, ctx.Err())
		}
	}
}

func (l *Lab) leads(ctx context.Context) string {
	s, err := l.Admin(l.file.Nodes[0].Name).Status(ctx)
	switch {
	case err != nil:
		return err.Error()
	case !s.Quorum:
		return "no quorum yet"
	}
	if err := l.writeCA(ctx); err != nil {
		return err.Error()
	}
	return ""
}

// answers says what is missing until every node does what it should.
func (l *Lab) answers(ctx context.Context) string {
	for _, n := range l.file.Nodes {
		s, err := l.Admin(n.Name).Status(ctx)
		switch {
		case err != nil:
			return fmt.Sprintf("%s: %v", n.Name, err)
		case !s.Quorum:
			return n.Name + ": no quorum yet"
		case len(s.Voters) < len(l.file.Nodes):
			return fmt.Sprintf("%s: %d of %d nodes vote", n.Name, len(s.Voters), len(l.file.Nodes))
		case n.Role == "site" && !s.Accepting:
			return n.Name + " accepts no mail: " + s.Reason
		}
		for _, m := range s.MX {
			if m.State != "up" || m.Reason == "health is not known yet: configured" {
				return fmt.Sprintf("%s sees %s %s: %s", n.Name, m.Node, m.State, m.Reason)
			}
		}
	}
	return ""
}

func (l *Lab) makeMailboxes(ctx context.Context) error {
	for len(l.file.Mailboxes) < l.opt.Mailboxes {
		l.progress(fmt.Sprintf("making mailbox %d of %d", len(l.file.Mailboxes)+1, l.opt.Mailboxes))
		c, err := l.Admin(l.file.Nodes[0].Name).CreateMailbox(ctx, admin.CreateMailbox{Description: "made by the lab"})
		if err != nil {
			return fmt.Errorf("make mailbox: %w", err)
		}
		l.file.Mailboxes = append(l.file.Mailboxes, Mailbox{c.ID, c.Address, c.Password})
	}
	l.progress("")
	return nil
}

// Serve shows progress and does what `msgw lab start|stop|kill` ask until ctx ends.
func (l *Lab) Serve(ctx context.Context) error {
	ln, err := admin.Listen(l.opt.Dir, socketName)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	for verb, do := range map[string]func(string) error{"start": l.StartNode, "stop": l.StopNode, "kill": l.KillNode} {
		mux.HandleFunc("POST /"+verb+"/{name}", func(w http.ResponseWriter, r *http.Request) {
			err := do(r.PathValue("name"))
			if err == nil {
				err = l.write()
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { l.watch(ctx) })
	err = admin.Serve(ctx, ln, mux)
	cancel()
	wg.Wait()
	return err
}

// watch keeps lab.json and the status line true.
func (l *Lab) watch(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-l.changed:
			if err := l.write(); err != nil {
				fmt.Fprintln(l.opt.Out, "lab.json:", err)
			}
		case <-t.C:
			if l.opt.Terminal {
				l.progress(l.summary(ctx))
			}
		case <-ctx.Done():
			l.progress("")
			return
		}
	}
}

// summary is one line about all nodes.
func (l *Lab) summary(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	text := ""
	for i, n := range l.Describe().Nodes {
		if i > 0 {
			text += " | "
		}
		text += n.Name + " "
		s, err := l.Admin(n.Name).Status(ctx)
		switch {
		case n.PID == 0:
			text += "stopped"
		case err != nil:
			text += "does not answer"
		case n.Role == "witness":
			text += "votes"
		default:
			text += fmt.Sprintf("%d waiting, quorum %v", s.Waiting.Messages, s.Quorum)
		}
	}
	return text
}

// progress rewrites the status line; empty text clears it.
func (l *Lab) progress(text string) {
	if l.opt.Terminal {
		if len(text) > 110 {
			text = text[:110]
		}
		fmt.Fprintf(l.opt.Out, "\r\x1b[K%s", text)
	}
}

// Close stops every node and, if the directory is temporary, removes it.
func (l *Lab) Close() error {
	err := l.stopAll()
	if l.lock != nil {
		if l.temp {
			err = errors.Join(err, os.RemoveAll(l.opt.Dir))
		} else {
			err = errors.Join(err, l.write())
			if rerr := os.Remove(filepath.Join(l.opt.Dir, socketName)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
		l.lock.Close()
	}
	return err
}

// Ask sends a verb about a node to the lab that runs in dir.
func Ask(ctx context.Context, dir, verb, name string) error {
	c := admin.HTTPClient(dir, socketName)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lab/"+verb+"/"+name, nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return &node.OperatorError{Err: fmt.Errorf("no lab runs in %s", dir), Hint: "start one with `msgw lab --dir " + dir + "`"}
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		return &node.OperatorError{Err: fmt.Errorf("%s %s: %s", verb, name, string(b))}
	}
	return nil
}
