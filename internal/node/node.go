// Package node is one running node: it builds the rooms, joins them, and starts and
// stops them in order. The rooms know nothing of each other; what one needs of
// another is adapted here.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"msgw/dnsplugin"
	"msgw/internal/admin"
	"msgw/internal/certs"
	"msgw/internal/health"
	"msgw/internal/journal"
	"msgw/internal/mtasts"
	"msgw/internal/peer"
	"msgw/internal/pop3d"
	"msgw/internal/seal"
	"msgw/internal/shadow"
	"msgw/raftstore"
	"msgw/smtpnode"
)

// Node is the rooms of one node.
type Node struct {
	cfg     *Config
	log     *slog.Logger
	version string
	id      *identity
	witness bool
	metrics *prometheus.Registry

	members    *members                // who belongs to the cluster, and this node's certificate
	dialer     *peer.Dialer            // connections to the other nodes
	peers      *peer.Client            // calls to them
	store      *raftstore.Store        // replicated configuration
	deriver    *seal.Deriver           // password checks
	journal    *journal.Journal        // this site's sealed messages; nil at a witness
	held       *journal.Journal        // copies of the other site's; nil at a witness
	shipper    *shadow.Shipper         // sends copies; nil at a witness
	holder     *shadow.Holder          // keeps copies; nil at a witness
	certs      *certs.Manager          // nil at a witness
	health     *health.Monitor         // verdicts
	drain      *drain                  // this node's own wish
	lineage    *lineage                // where its configuration stands among the others'
	zone       *zone                   // what the DNS answers; nil at a witness
	drops      *maildrops              // open maildrops
	quarantine *quarantine             // messages that cannot be read; nil at a witness
	restricted restricted              // mail that restrictions refused
	offered    atomic.Pointer[offered] // what clients are told
	keys       zoneKeys                // that the zone is signed with
	lookParent lookFunc                // how the parent zone is looked at; nil: through the resolver
	told       toldServed              // what the other sites say that they serve
	lookedUp   lookedUp                // addresses of exchanges
	announced  announced               // keys that are not used yet

	rejoining sync.Mutex   // held while this node changes its lineage
	leaving   atomic.Int64 // until when this node takes no mail, in nanoseconds since 1970
	// committing is held for reading while a message is being taken.
	committing sync.RWMutex
}

// Run runs the node that cfg describes until ctx ends. It returns *OperatorError
// for what must be fixed before another try.
func Run(ctx context.Context, cfg *Config, version string, log *slog.Logger) error {
	id, err := loadIdentity(cfg.State)
	if err != nil {
		return err
	}
	if id.Name != cfg.Name {
		return operatorError(fmt.Errorf("name: %q, but %s holds the node %s", cfg.Name, cfg.State, id.Name),
			"correct name or state in the configuration file")
	}
	lock, err := awaitState(ctx, cfg.State)
	if err != nil {
		return err
	}
	defer lock.Close()

	n := &Node{cfg: cfg, log: log, version: version, id: id, witness: id.Role == raftstore.Witness, metrics: prometheus.NewRegistry()}
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return n.run(ctx)
}

// run opens every room from the ground up, serves, and closes them the other way
// round.
func (n *Node) run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listeners, err := n.listen()
	if err != nil {
		return err
	}
	defer listeners.close()

	// The configuration, and the port over which it is replicated.
	if n.members, err = openMembers(n); err != nil {
		return err
	}
	n.dialer = peer.NewDialer(n.members)
	n.peers = peer.NewClient(n.dialer)
	defer n.peers.Close()
	peerAddr, err := n.cfg.PeerAddress()
	if err != nil {
		return operatorError(err, "")
	}
	peers := peer.NewServer(n.members, peerAddr, n.log)
	stream := &raftStream{Listener: peers.Listener(peer.Raft), dialer: n.dialer, members: n.members}
	n.store, err = raftstore.Open(raftstore.Options{Dir: n.cfg.State, Name: n.id.Name, ID: n.id.serverID(), Witness: n.witness,
		Stream: stream, Peers: peerCalls{n}, Log: n.log})
	if errors.Is(err, raftstore.ErrNoState) {
		return operatorError(err, lostHint)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.store.Close()) }()
	n.members.follow(n.store)
	if n.drain, err = openDrain(n.cfg.State); err != nil {
		return err
	}
	if n.lineage, err = openLineage(n.cfg.State); err != nil {
		return n.unreadable(err)
	}
	n.deriver = seal.NewDeriver(256 << 10)

	// The rooms of a site.
	if !n.witness {
		closeMail, err := n.openMail()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeMail()) }()
		n.drops = newMaildrops(n)
		if n.quarantine, err = openQuarantine(n.cfg.State, n.log); err != nil {
			return err
		}
		if n.certs, err = n.openCerts(); err != nil {
			return err
		}
		n.zone = newZone(n)
	}
	n.health = n.newHealth()
	n.registerGauges()
	socket, err := admin.Listen(n.cfg.State, SocketFile)
	if err != nil {
		return fmt.Errorf("socket in %s: %w", n.cfg.State, err)
	}
	defer socket.Close()
	var dns *dnsplugin.Server
	if !n.witness {
		if dns, err = n.listenDNS(ctx); err != nil {
			return err
		}
	}

	// Everything is open: serve. Each task ends with ctx; one that fails ends all.
	// The rooms are closed only after every task has ended.
	var tasks tasks
	run := func(name string, f func(context.Context) error) { tasks.run(ctx, cancel, name, f) }
	run("peer port", func(ctx context.Context) error { return peers.Serve(ctx, listeners.peer) })
	n.servePeers(run, peers)
	run("lineage", func(ctx context.Context) error {
		return n.keepLineage(ctx, func() { n.dialer.Prune(); peers.Prune() })
	})
	run("health", func(ctx context.Context) error { n.health.Run(ctx); return nil })
	run("upkeep", n.upkeep)
	if !n.witness {
		run("certificates", func(ctx context.Context) error { n.certs.Run(ctx); return nil })
		run("announced keys", n.watchAnnounced)
		run("quarantine", func(ctx context.Context) error { return n.quarantine.review(ctx, n.journal, n.held) })
		run("zone", n.zone.run)
		run("dns", dns.Serve)
		// Transfers that a stop finds under way still get their second copy.
		shipping, stop := context.WithCancel(context.WithoutCancel(ctx))
		run("smtp", func(ctx context.Context) error { defer stop(); return n.smtpServer().Serve(ctx, listeners.smtp) })
		run("copies", func(context.Context) error { n.shipper.Run(shipping); return nil })
		run("adoption", func(ctx context.Context) error { n.holder.Run(ctx); return nil })
		copies := fromOther{peers.Listener(peer.Copies), n}
		run("copies of the other site", func(ctx context.Context) error { return n.holder.Serve(ctx, copies) })
		run("pop3", func(ctx context.Context) error { return n.pop3Server().Serve(ctx, listeners.pop3, listeners.pop3s) })
	}
	if listeners.https != nil {
		run("mta-sts", func(ctx context.Context) error {
			return mtasts.Serve(ctx, listeners.https, n.certs.HTTPS(), n.stsText, n.log)
		})
	}
	if listeners.http != nil {
		run("http-01", func(ctx context.Context) error { return n.certs.ServeHTTP01(ctx, listeners.http) })
	}
	if listeners.metrics != nil {
		run("metrics", func(ctx context.Context) error { return admin.Serve(ctx, listeners.metrics, n.metricsHandler()) })
	}
	run("socket", func(ctx context.Context) error { return admin.Serve(ctx, socket, admin.Handler(operator{n}, n.log)) })
	manager, err := findServiceManager(os.Getenv)
	if err != nil {
		n.log.Warn("the service manager is not told anything", "error", err)
	}
	run("service manager", func(ctx context.Context) error {
		manager.attend(ctx, n.summary, func(err error) { n.log.Warn("not told", "error", err) })
		return nil
	})
	n.log.Info("node started", "node", n.id.Name, "role", n.id.Role, "version", n.version, "epoch", n.members.Epoch(), "revision", n.store.State().Revision)
	<-ctx.Done()
	n.log.Info("node stops")
	return tasks.wait()
}

// tasks are the goroutines of a node.
type tasks struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	err error
}

func (t *tasks) run(ctx context.Context, cancel func(), name string, f func(context.Context) error) {
	t.wg.Go(func() {
		if err := f(ctx); err != nil {
			t.mu.Lock()
			t.err = errors.Join(t.err, fmt.Errorf("%s: %w", name, err))
			t.mu.Unlock()
			cancel()
		}
	})
}

func (t *tasks) wait() error {
	t.wg.Wait()
	return t.err
}

// listeners are the bound TCP ports of a node.
type listeners struct {
	peer, smtp, pop3, pop3s, http, https, metrics net.Listener
}

// listen binds every TCP port, or none and says which one is taken.
func (n *Node) listen() (*listeners, error) {
	l := &listeners{}
	bind := func(key, addr string, to *net.Listener) error {
		if addr == "" {
			return nil
		}
		ln, err := net.Listen("tcp", addr)
		*to = ln
		if err != nil {
			*to = nil
			return bindError(key, addr, err)
		}
		return nil
	}
	c := n.cfg.Listen
	err := errors.Join(bind("listen.peer", c.Peer, &l.peer), bind("listen.metrics", c.Metrics, &l.metrics))
	if err == nil && !n.witness {
		err = errors.Join(bind("listen.smtp", c.SMTP, &l.smtp), bind("listen.pop3", c.POP3, &l.pop3), bind("listen.pop3s", c.POP3S, &l.pop3s),
			bind("listen.http", c.HTTP, &l.http), bind("listen.https", c.HTTPS, &l.https))
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func bindError(key, addr string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = "another program listens there; find it with `ss -ltnup`"
	case errors.Is(err, syscall.EACCES):
		hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "this machine does not have that address"
	}
	// An address may come later: a lease that is on its way at a machine's start.
	return &OperatorError{Err: fmt.Errorf("%s: cannot listen on %s: %w", key, addr, unwrapSyscall(err)), Hint: hint,
		MayPass: errors.Is(err, syscall.EADDRNOTAVAIL)}
}

// unwrapSyscall drops what repeats the address.
func unwrapSyscall(err error) error {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys
	}
	return err
}

func (l *listeners) close() {
	for _, ln := range []net.Listener{l.peer, l.smtp, l.pop3, l.pop3s, l.http, l.https, l.metrics} {
		if ln != nil {
			ln.Close()
		}
	}
}

func (n *Node) smtpServer() *smtpnode.Server {
	return smtpnode.New(smtpnode.Options{Host: n.host(), TLS: n.certs.TLS(), Mailboxes: mailboxes{n}, Store: mailStore{n},
		Log: n.log, Metrics: n.metrics})
}

func (n *Node) pop3Server() *pop3d.Server {
	return pop3d.New(pop3d.Options{Maildrops: n.drops, TLS: n.certs.TLS(), Log: n.log, Metrics: n.metrics})
}

// host is the public name of this node. The others learn a new one from announce.
func (n *Node) host() string { return n.cfg.host(n.store.State().Zone.Name) }

// upkeep does what is due from time to time.
func (n *Node) upkeep(ctx context.Context) error {
	t := time.NewTicker(5 * time.Second)
	defer t.Stop()
	known := retirements{}
	for {
		n.members.renew(ctx)
		n.announce(ctx)
		n.expireDrain()
		n.purgeRetired(ctx, known)
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}
