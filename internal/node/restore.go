package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"msgw/internal/backup"
	"msgw/internal/ca"
	"msgw/internal/journal"
	"msgw/internal/seal"
	"msgw/raftstore"
)

// Restored says what Restore made of a backup.
type Restored struct {
	Backup *backup.Contents
	State  *raftstore.State // what the node begins with; its revision is one higher
	NewCA  bool             // the backup did not hold the CA's key
	Others []raftstore.Node // nodes that were not taken over, by name
	// OldHost is the host name that the node had, if it has another one now.
	OldHost string
	// Unsigned: the zone was signed, and the backup does not hold its keys.
	Unsigned bool
	// Strict: some mail is refused for now until there is a second site.
	Strict bool
}

// Restore makes a new appliance of one node from a backup: its zone, mailboxes and
// settings, and its messages as this node's own. Name, addresses and host name are those
// of cfg, keys and server id are new, and the epoch is the next one, so that a node of
// before does not talk to it. The backup is checked to its end before anything is made.
// Nothing is left in the state directory if it fails, nor anything that looks like a node
// if it dies: the identity comes last.
//
// Errors: *OperatorError, those of backup.Read.
func Restore(ctx context.Context, cfg *Config, file io.ReadSeeker, ids []backup.Identity) (_ *Restored, err error) {
	if err := checkVacant(cfg.State); err != nil {
		return nil, err
	}
	stop := func(journal.Meta, bool, io.Reader) error { return ctx.Err() }
	held, err := backup.Read(file, ids, stop)
	if err != nil {
		return nil, err
	}
	id, err := newIdentity(held.State.Cluster, cfg.Name, raftstore.Site)
	if err != nil {
		return nil, err
	}
	made := &Restored{Backup: held}
	if err := made.begin(cfg, id); err != nil {
		return nil, err
	}
	cert, err := made.certify(id, time.Now())
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read the backup again: %w", err)
	}

	release, err := claimState(cfg.State, &err)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := raftstore.Create(cfg.State, id.ID, made.State); err != nil {
		return nil, err
	}
	if err := id.furnish(cfg.State, cert); err != nil {
		return nil, err
	}
	var again *backup.Contents
	err = fillJournal(ctx, filepath.Join(cfg.State, journalDir), held.Summary.Octets, func(add messageFunc) (err error) {
		again, err = backup.Read(file, ids, add)
		return err
	})
	if err != nil {
		return nil, err
	}
	if again.List != held.List {
		return nil, errors.New("the backup was changed while it was read")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := id.save(cfg.State); err != nil {
		return nil, err
	}
	return made, nil
}

// checkVacant says whether a node can be made in dir, before anything is read or made.
func checkVacant(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return operatorError(fmt.Errorf("state: %w", err), "")
	}
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == identityFile }) {
		return checkEmpty(dir, entries)
	}
	lock, err := lockState(dir)
	var taken *OperatorError
	switch {
	case errors.As(err, &taken):
		return operatorError(fmt.Errorf("state: %s is in use: a backup is not restored over a live node", dir),
			"what a node has is newer than any backup of it; if it is to be replaced all the same, stop it and move the directory away")
	case err != nil:
		return err
	}
	lock.Close()
	return operatorError(fmt.Errorf("state: %s holds a node: a backup is not restored over it", dir),
		"start it with `msgw serve`; if it is to be replaced all the same, move the directory away and keep it: its journal may hold mail that the backup does not")
}

// begin works out the first state of the new appliance.
func (r *Restored) begin(cfg *Config, id *identity) error {
	old := r.Backup.State
	self, err := cfg.member(id, old.Zone.Name)
	if err != nil {
		return err
	}
	self.Weight, self.Joined = 1, time.Now().UTC()
	for _, n := range old.SortedNodes() {
		if n.Name != id.Name {
			r.Others = append(r.Others, n)
		} else if n.Role == raftstore.Site {
			self.Weight = n.Weight
			if n.Host != self.Host {
				r.OldHost = n.Host
			}
		}
	}
	s := *old
	s.Epoch = raftstore.Epoch{Number: old.Epoch.Number + 1, ID: randomHex(8)}
	s.Nodes = map[string]raftstore.Node{id.Name: self}
	s.Invites, s.Recent, s.Hash = map[string]raftstore.Invite{}, nil, ""
	s.Content.NameServers = keepNameServers(&s)
	if err := raftstore.CheckContent(&s); err != nil {
		return operatorError(fmt.Errorf("the zone's settings in the backup do not fit this node: %w", err), "give it another name, or another host name in public.host")
	}
	r.State = &s
	for _, m := range s.Mailboxes {
		r.Strict = r.Strict || m.Status == raftstore.Active && s.Strict(m)
	}
	return nil
}

// keepNameServers returns the name servers whose addresses are known without the sites that
// were not restored; if there are none, the host name of this node stands in their place.
func keepNameServers(s *raftstore.State) (list []raftstore.NameServer) {
	for _, ns := range s.Content.NameServers {
		_, member := s.Nodes[ns.Site]
		isHost := slices.ContainsFunc(s.SortedNodes(), func(n raftstore.Node) bool { return n.Host == ns.Name })
		if member || isHost || ns.Site == "" && !strings.HasSuffix(ns.Name, "."+s.Zone.Name) {
			list = append(list, ns)
		}
	}
	return list
}

// certify takes over the CA, or makes a new one, and issues the peer certificate.
func (r *Restored) certify(id *identity, now time.Time) (cert string, err error) {
	root, key := r.State.CA.Certificate, r.Backup.CAKey
	if r.NewCA = key == nil; r.NewCA {
		if root, key, err = ca.New(r.State.Cluster, now); err != nil {
			return "", err
		}
	}
	sealed, err := seal.SealSecret(key, id.node.Recipient())
	if err != nil {
		return "", err
	}
	r.State.CA = raftstore.CA{Certificate: root, Key: sealed, SealedTo: []string{id.Name}}
	if r.State.Signing, r.Unsigned, err = restoredSigning(r.State.Signing, id); err != nil {
		return "", err
	}
	authority, err := ca.Open(root, key)
	if err != nil {
		return "", err
	}
	return authority.IssuePeer(ca.Identity{Cluster: id.Cluster, Node: id.Name, ID: id.ID}, id.peer.Public(), now)
}

// What is stored with one flush.
const (
	restoreBatch  = 256
	restoreOctets = 8 << 20
)

// messageFunc takes one message of a backup.
type messageFunc = func(m journal.Meta, copied bool, sealed io.Reader) error

// fillJournal stores the messages with which read calls add, octets of them in all, in
// the empty journal in dir.
func fillJournal(ctx context.Context, dir string, octets int64, read func(add messageFunc) error) (err error) {
	j, err := journal.Open(dir, journal.Options{KeepGraves: true, CompactRate: -1, ScrubRate: -1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	if err := j.Room(octets); err != nil {
		return operatorError(fmt.Errorf("state: the messages of the backup have %d octets: %w", octets, err), "make room, or name another directory")
	}
	var batch []journal.Message
	size := int64(0)
	defer func() {
		for _, m := range batch {
			m.Body.Discard()
		}
	}()
	commit := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := j.Commit(batch...) // which discards them if it fails
		batch, size = nil, 0
		return err
	}
	err = read(func(m journal.Meta, _ bool, sealed io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := j.NewBody(m.ID)
		batch = append(batch, journal.Message{Meta: m, Body: b})
		if _, err := io.Copy(b, sealed); err != nil {
			return err
		}
		if size += m.Sealed; len(batch) >= restoreBatch || size >= restoreOctets {
			return commit()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return commit()
}
