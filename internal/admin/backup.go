package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// BackupRequest asks for a backup.
type BackupRequest struct {
	// Recipients of age who can read it: age1... or age1pq1...; none: it is not encrypted.
	Recipients []string `json:"recipients,omitempty"`
	Journal    bool     `json:"journal,omitempty"` // with the messages that wait
}

// Backup says what one holds.
type Backup struct {
	Node      string `json:"node"`
	Zone      string `json:"zone"`
	Revision  uint32 `json:"revision"`
	Encrypted int    `json:"encrypted"` // number of recipients
	CAKey     bool   `json:"ca_key"`
	Journal   bool   `json:"journal"`
	Mailboxes int    `json:"mailboxes"`
	Own       int    `json:"own"`    // messages that this site took
	Copies    int    `json:"copies"` // of messages that the other site took
	Octets    int64  `json:"octets"` // of the messages, sealed
	// Damaged messages are left out; the first ones are named.
	Damaged int      `json:"damaged"`
	LeftOut []string `json:"left_out,omitempty"`
}

// MaxLeftOut bounds Backup.LeftOut.
const MaxLeftOut = 16

const (
	// outcomeTrailer follows the octets of a backup. Without it they are not whole.
	outcomeTrailer = "Msgw-Outcome"
	// maxOutcomeText bounds the message of an error in it: there is room for 4 KiB.
	maxOutcomeText = 1000
	// takeTime is how long the socket waits for the other side to take some octets.
	takeTime = 5 * time.Minute
)

type outcome struct {
	Backup *Backup `json:"backup,omitempty"`
	Error  *Error  `json:"error,omitempty"`
}

// sendBackup answers with the octets of a backup, and behind them what came of it.
func sendBackup(w http.ResponseWriter, r *http.Request, n Node, log *slog.Logger) {
	const pattern = "POST /v1/backup"
	var in BackupRequest
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		answer(w, pattern, log, nil, Errorf(http.StatusBadRequest, "", "request does not parse: %v", err))
		return
	}
	out := &patientWriter{w: w, control: http.NewResponseController(w)}
	w.Header().Set("Trailer", outcomeTrailer)
	sum, err := n.Backup(r.Context(), in, out)
	if err != nil && !out.begun {
		w.Header().Del("Trailer")
		answer(w, pattern, log, nil, err)
		return
	}
	last := outcome{Backup: &sum}
	if err != nil {
		log.Warn("backup not whole", "err", err)
		e := *asError(err)
		e.Message = e.Message[:min(len(e.Message), maxOutcomeText)]
		last = outcome{Error: &e}
	}
	b, err := json.Marshal(last)
	if err != nil {
		panic(err) // plain data always encodes
	}
	w.Header().Set(outcomeTrailer, string(b))
}

// patientWriter gives the other side takeTime for every piece.
type patientWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (p *patientWriter) Write(b []byte) (int, error) {
	if !p.begun {
		p.begun = true
		p.w.Header().Set("Content-Type", "application/octet-stream")
	}
	if err := p.control.SetWriteDeadline(time.Now().Add(takeTime)); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

// Backup writes a backup of the node to w. What is on w is whole only if there is no
// error.
func (c *Client) Backup(ctx context.Context, r BackupRequest, w io.Writer) (Backup, error) {
	res, err := c.send(ctx, "POST", "/v1/backup", r)
	if err != nil {
		return Backup{}, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(w, res.Body); err != nil {
		return Backup{}, fmt.Errorf("copy what the node sends: %w", err)
	}
	var last outcome
	if err := json.Unmarshal([]byte(res.Trailer.Get(outcomeTrailer)), &last); err != nil {
		return Backup{}, fmt.Errorf("the node's answer breaks off: %w", err)
	}
	switch {
	case last.Error != nil:
		// What an error of a begun answer means is not known: it is nobody's mistake.
		last.Error.Status = http.StatusInternalServerError
		return Backup{}, last.Error
	case last.Backup == nil:
		return Backup{}, errors.New("the node's answer is of another version")
	}
	return *last.Backup, nil
}
