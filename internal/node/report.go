package node

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"msgw/internal/admin"
	"msgw/internal/health"
	"msgw/internal/journal"
	"msgw/internal/peer"
	"msgw/internal/shadow"
	"msgw/raftstore"
)

// report is what a node tells the others about itself.
type report struct {
	health.Report
	Node     string             `json:"node"`
	Epoch    raftstore.Epoch    `json:"epoch"`
	Position raftstore.Position `json:"position"`
	Waiting  admin.Waiting      `json:"waiting"`
	Copies   *admin.Copies      `json:"copies,omitempty"`
	Drain    *admin.Drain       `json:"drain,omitempty"`
	Damaged  int                `json:"damaged"` // places in its journals that cannot be read
	// Lineage is how its epoch came about, Renounced why it does not vote.
	Lineage   []raftstore.EpochStart `json:"lineage,omitempty"`
	Renounced string                 `json:"renounced,omitempty"`
	You       string                 `json:"you,omitempty"` // server id of who asked, as it is known here
	Serves    *served                `json:"serves,omitempty"`
	Unsigned  bool                   `json:"unsigned,omitempty"` // the zone is to be signed, and it cannot
}

// asking is what a node says of itself when it asks for a report.
type asking struct {
	Epoch    raftstore.Epoch    `json:"epoch"`
	Position raftstore.Position `json:"position"`
}

func (n *Node) report() report {
	reason := n.refusal()
	s := n.store.State()
	r := report{Node: n.id.Name, Epoch: s.Epoch, Position: n.store.Position(), Lineage: s.Lineage}
	if ren := n.store.Renounced(); ren != nil {
		r.Renounced = ren.Why
	}
	d := n.drain.get()
	r.Report = health.Report{Accepting: reason == "", Reason: reason, Drained: d.Drained, DrainedUntil: d.Until, Views: n.health.Views()}
	if !n.witness {
		h := n.holdings()
		r.Waiting, r.Copies = h.waiting(), n.copies(h)
		r.Drain = n.describeDrain(d, r.Copies, r.Waiting.Messages)
		r.Serves, r.Unsigned = n.servesItself(), len(n.signingTrouble(s.Signing)) > 0
		r.Damaged = len(n.journal.Damaged()) + len(n.held.Damaged())
	}
	return r
}

// refusal says why this node takes no mail now, or nothing.
func (n *Node) refusal() string {
	if n.witness {
		return "" // it never does, and nobody asks it to
	}
	if why := n.gone(); why != "" {
		return why
	}
	if err := n.journal.Err(); err != nil {
		return err.Error()
	}
	if err := n.journal.Room(0); err != nil {
		return err.Error()
	}
	if n.store.State().AllStrict() {
		if err := n.shipper.Refuse(true); err != nil {
			return err.Error()
		}
	}
	if err := n.health.OwnSMTP(); err != nil {
		return err.Error()
	}
	return ""
}

func total(all map[string]journal.Waiting) admin.Waiting {
	var t admin.Waiting
	for _, w := range all {
		t.Mailboxes++
		t.Messages += w.Messages
		t.Octets += w.Octets
		if t.Oldest.IsZero() || w.Oldest.Before(t.Oldest) {
			t.Oldest = w.Oldest
		}
	}
	return t
}

// ask gets a node's report.
func (n *Node) ask(ctx context.Context, name string) (report, error) {
	var r report
	if name == n.id.Name {
		return n.report(), nil
	}
	id := n.store.State().Nodes[name].ID
	if err := n.askStatus(ctx, id, "/report", asking{n.store.State().Epoch, n.store.Position()}, &r); err != nil {
		return r, err
	}
	n.lineage.note(name, r)
	if r.Epoch == n.store.State().Epoch {
		n.store.Compare(name, r.Position)
	}
	return r, nil
}

// askStatus calls a node of any epoch, and takes down its word that this one is no member
// any more.
func (n *Node) askStatus(ctx context.Context, id, path string, in, out any) error {
	err := n.peers.Call(ctx, peer.Status, id, path, in, out)
	var ref *peer.Refusal
	if errors.As(err, &ref) && ref.Code == formerStatus {
		n.becomeFormer(ref.Text)
	}
	return err
}

// registerGauges exports what status shows.
func (n *Node) registerGauges() {
	gauge := func(name, help string, f func() float64) {
		n.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "msgw_" + name, Help: help}, f))
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge("quorum", "1 if configuration changes can be made.", func() float64 { return truth(n.store.Status().Quorum) })
	gauge("config_revision", "Revision of the configuration, which is the zone's SOA serial.", func() float64 { return float64(n.store.State().Revision) })
	gauge("config_trouble", "1 if configurations diverged or the file cannot be written.", func() float64 { return truth(n.store.Status().Err != nil) })
	gauge("epoch", "Number of the configuration's epoch; a recovery raises it.", func() float64 { return float64(n.store.State().Epoch.Number) })
	gauge("voting", "1 if this node takes part in changes: 0 after it has renounced its vote, until it has rejoined.", func() float64 {
		return truth(n.store.Renounced() == nil && n.lineage.formerly() == "")
	})
	gauge("forks", "Sites in reach whose configuration went on without this one's.", func() float64 { return float64(n.forks()) })
	if n.witness {
		return
	}
	gauge("accepting", "1 if mail is taken.", func() float64 { return truth(n.refusal() == "") })
	gauge("drained", "1 if this node asks for no new mail.", func() float64 { return truth(n.drain.get().Drained) })
	gauge("journal_waiting_messages", "Messages that the archive has not fetched.", func() float64 { return float64(n.holdings().waiting().Messages) })
	gauge("journal_waiting_octets", "Their octets.", func() float64 { return float64(n.holdings().waiting().Octets) })
	gauge("journal_oldest_seconds", "Age of the oldest of them; 0 if there is none.", func() float64 {
		if t := n.holdings().waiting().Oldest; !t.IsZero() {
			return time.Since(t).Seconds()
		}
		return 0
	})
	gauge("journal_quarantined_messages", "Messages that cannot be read and are not listed.", func() float64 { return float64(len(n.quarantine.list())) })
	gauge("journal_damaged", "Places in the journals that cannot be read.", func() float64 {
		return float64(len(n.journal.Damaged()) + len(n.held.Damaged()))
	})
	gauge("disk_low", "1 if the disk fills up: mail is refused before it is full.", func() float64 { return truth(n.journal.Low()) })
	for _, s := range []shadow.State{shadow.Sync, shadow.Hold, shadow.Degraded, shadow.CatchUp, shadow.Alone} {
		n.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "msgw_copies_state", Help: "1 for the state of the copies at the other site.",
			ConstLabels: prometheus.Labels{"state": string(s)}}, func() float64 { return truth(n.shipper.Report().State == s) }))
	}
	gauge("copies_single_messages", "Messages that the other site is not known to hold.", func() float64 { return float64(n.shipper.Report().Single) })
	gauge("copies_lost_messages", "Messages that only the other site holds and that cannot be fetched.", func() float64 { return float64(n.shipper.Report().Lost) })
	gauge("copies_conflicts", "Messages that differ between the sites.", func() float64 { return float64(n.shipper.Report().Conflicts) })
	gauge("copies_damaged", "Damaged messages, at either site, that could not be repaired from the other copy.", func() float64 { return float64(n.shipper.Report().Damaged) })
	n.metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "msgw_copies_repaired_total", Help: "Damaged messages, at either site, that were repaired."},
		func() float64 { return float64(n.shipper.Report().Repaired) }))
	gauge("copies_held_messages", "Copies of the other site's messages here.", func() float64 { return float64(total(n.held.Waiting()).Messages) })
	gauge("copies_adopted", "1 if the other site's messages are handed over here.", func() float64 {
		adopted, _, _ := n.holder.Adopted()
		return truth(adopted)
	})
	n.metrics.MustRegister(certMetrics{n.certs})
}

func (n *Node) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{}))
	return mux
}
