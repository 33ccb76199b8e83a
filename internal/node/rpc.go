package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"msgw/internal/admin"
	"msgw/internal/ca"
	"msgw/internal/peer"
	"msgw/raftstore"
)

// Bounds of the body of a call: from a member, and from a stranger who wants to join.
const (
	maxCall = 8 << 20
	maxJoin = 64 << 10
)

// servePeers starts what other nodes may ask of this one.
func (n *Node) servePeers(run func(string, func(context.Context) error), s *peer.Server) {
	rpc := http.NewServeMux()
	handle(rpc, "/propose", func(_ context.Context, raw json.RawMessage) (json.RawMessage, error) { return n.store.Receive(raw) })
	handle(rpc, "/position", func(context.Context, struct{}) (raftstore.Position, error) { return n.store.Position(), nil })
	handle(rpc, "/confirm", func(context.Context, struct{}) (uint64, error) { return n.store.Confirm() })
	handle(rpc, "/holdings", func(context.Context, struct{}) (holdings, error) { return n.holdings(), nil })
	handle(rpc, "/drain", func(_ context.Context, d admin.SetDrain) (admin.Drain, error) { return n.setOwnDrain(d) })
	handle(rpc, "/leave", func(ctx context.Context, _ struct{}) (struct{}, error) { return struct{}{}, n.leave(ctx) })
	handle(rpc, "/delegation", func(ctx context.Context, _ struct{}) (admin.ParentView, error) { return n.lookAtParent(ctx), nil })
	rpc.HandleFunc("POST /sign", n.signWitness)
	if !n.witness {
		handle(rpc, "/challenge", n.answerChallenge)
		handle(rpc, "/certificates", func(context.Context, struct{}) (admin.Certificates, error) { return n.ownCertificates(), nil })
	}

	status := http.NewServeMux()
	handle(status, "/report", func(ctx context.Context, a asking) (report, error) {
		id, err := n.asker(ctx)
		if a.Epoch == n.store.State().Epoch && id.Node != "" && !errors.As(err, new(*formerError)) {
			// Also from one that is not known here: this node may have been set back to
			// before the other joined.
			n.store.Compare(id.Node, a.Position)
		}
		r := n.report()
		r.You = n.store.State().Nodes[id.Node].ID
		return r, err
	})
	handle(status, "/configuration", func(ctx context.Context, _ struct{}) (*raftstore.State, error) {
		_, err := n.asker(ctx)
		return n.store.State(), err
	})
	handle(status, "/rejoin", n.readmit)
	handle(status, "/look", n.lookAt)
	handle(status, "/dns", func(ctx context.Context, _ struct{}) (admin.DNS, error) {
		if _, err := n.asker(ctx); err != nil {
			return admin.DNS{}, err
		}
		return n.explain()
	})

	join := http.NewServeMux()
	if !n.witness { // it cannot issue
		handleUpTo(maxJoin, join, "/join", n.admit)
	}
	for p, h := range map[peer.Protocol]http.Handler{peer.RPC: rpc, peer.Status: status, peer.Join: join} {
		l := s.Listener(p)
		run("peer calls", func(ctx context.Context) error { return serveHTTP(ctx, l, h) })
	}
}

// peerKey finds the TLS state of a call's connection in its context.
type peerKey struct{}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(interface{ ConnectionState() tls.ConnectionState }); ok {
				ctx = context.WithValue(ctx, peerKey{}, t.ConnectionState())
			}
			return ctx
		}}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// handle serves a call of peer.Client.Call.
func handle[In, Out any](mux *http.ServeMux, path string, f func(context.Context, In) (Out, error)) {
	handleUpTo(maxCall, mux, path, f)
}

func handleUpTo[In, Out any](limit int64, mux *http.ServeMux, path string, f func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit)).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := f(r.Context(), in)
		var rej *raftstore.Rejection
		var gone *formerError
		switch {
		case errors.As(err, &gone):
			http.Error(w, gone.text, formerStatus)
		case err == nil:
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(out)
		case errors.As(err, &rej):
			http.Error(w, rej.Message, http.StatusConflict)
		case errors.Is(err, raftstore.ErrNoQuorum):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// peerCalls is the raftstore.Peers of this node.
type peerCalls struct{ n *Node }

// call calls a member by name.
func (p peerCalls) call(ctx context.Context, name, path string, in, out any) error {
	node, ok := p.n.store.State().Nodes[name]
	if !ok {
		return fmt.Errorf("%w: no node is named %s", raftstore.ErrNotSent, name)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := p.n.peers.Call(ctx, peer.RPC, node.ID, path, in, out)
	var ref *peer.Refusal
	switch {
	case errors.Is(err, peer.ErrNotSent):
		return fmt.Errorf("%w: %s: %w", raftstore.ErrNotSent, name, err)
	case errors.As(err, &ref) && ref.Code == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: %s: %w", raftstore.ErrNoQuorum, name, err)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (p peerCalls) Propose(ctx context.Context, name string, command []byte) ([]byte, error) {
	var out json.RawMessage
	err := p.call(ctx, name, "/propose", json.RawMessage(command), &out)
	return out, err
}

func (p peerCalls) Position(ctx context.Context, name string) (raftstore.Position, error) {
	var out raftstore.Position
	err := p.call(ctx, name, "/position", struct{}{}, &out)
	return out, err
}

func (p peerCalls) Confirm(ctx context.Context, name string) (uint64, error) {
	var out uint64
	err := p.call(ctx, name, "/confirm", struct{}{}, &out)
	return out, err
}

// holdingsAt asks a site what it has.
func (n *Node) holdingsAt(ctx context.Context, name string) (holdings, error) {
	if name == n.id.Name {
		return n.holdings(), nil
	}
	var out holdings
	err := peerCalls{n}.call(ctx, name, "/holdings", struct{}{}, &out)
	return out, err
}

// signWitness issues a new peer certificate to the witness, which cannot issue its
// own. Who asks is known from the connection.
func (n *Node) signWitness(w http.ResponseWriter, r *http.Request) {
	if n.witness {
		http.Error(w, "a witness cannot issue", http.StatusConflict)
		return
	}
	pemText, err := func() (string, error) {
		state, _ := r.Context().Value(peerKey{}).(tls.ConnectionState)
		id, err := ca.VerifyPeer(n.members.Root(), state.PeerCertificates, time.Now())
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
		if err != nil {
			return "", err
		}
		var csr string
		if err := json.Unmarshal(b, &csr); err != nil {
			return "", err
		}
		return n.issuePeer(id, csr)
	}()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	json.NewEncoder(w).Encode(pemText)
}

// issuePeer issues a peer certificate for the key that a certificate request shows.
func (n *Node) issuePeer(id ca.Identity, csrPEM string) (string, error) {
	p, _ := pem.Decode([]byte(csrPEM))
	if p == nil {
		return "", errors.New("certificate request: expected PEM")
	}
	csr, err := x509.ParseCertificateRequest(p.Bytes)
	if err != nil {
		return "", fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return "", fmt.Errorf("certificate request: %w", err)
	}
	a, err := n.authority()
	if err != nil {
		return "", err
	}
	return a.IssuePeer(id, csr.PublicKey, time.Now())
}

// askForCertificate gets a new peer certificate from any site.
func (n *Node) askForCertificate(ctx context.Context) (string, error) {
	csr, err := n.id.request()
	if err != nil {
		return "", err
	}
	var errs []error
	for _, name := range n.store.State().Sites() {
		var out string
		if err := (peerCalls{n}).call(ctx, name, "/sign", csr, &out); err != nil {
			errs = append(errs, err)
			continue
		}
		return out, nil
	}
	return "", errors.Join(errs...)
}
