package shadow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"msgw/internal/journal"
)

// answer does a request and returns the payload of kindDone; part sends a part of a
// long answer.
type answer func(payload []byte, part func([]byte) error) ([]byte, error)

// answers are the requests that are not about storing a message.
func (h *Holder) answers() map[kind]answer {
	return map[kind]answer{
		kindPing:    h.ping,
		kindDrop:    h.drop,
		kindSummary: h.summary,
		kindBucket:  h.bucket,
		kindGraves:  h.graves,
		kindForget:  h.forget,
		kindGet:     h.get,
		kindReturn:  h.giveBack,
		kindDamaged: h.damaged,
	}
}

// ping says that this site lives, whether it can store, how many copies are damaged, and
// whether the owner's messages are adopted: it may not know that it was taken for dead.
func (h *Holder) ping([]byte, func([]byte) error) ([]byte, error) {
	if err := h.held.Err(); err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(damaged(h.held))))
	adopted, _, _ := h.Adopted()
	if adopted {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return b, h.held.Room(0)
}

// drop deletes copies of what the owner has deleted, those too that are just being
// stored. The owner knows, so no grave is left.
func (h *Holder) drop(payload []byte, _ func([]byte) error) ([]byte, error) {
	ids, err := decodeIDs(payload)
	if err != nil {
		return nil, err
	}
	h.dropped.add(ids, time.Now()) // first: what is still on its way must not come after
	for _, id := range ids {
		h.stored(id)
	}
	if err := h.held.Delete(ids...); err != nil {
		return nil, err
	}
	// What a failed flush left is not held, and may be after a restart.
	if err := h.held.Err(); errors.Is(err, journal.ErrFailed) {
		return nil, err
	}
	h.held.Forget(ids...)
	return nil, nil
}

// summary tells what is held, in 256 buckets of 4 octets count and 16 octets XOR.
func (h *Holder) summary([]byte, func([]byte) error) ([]byte, error) {
	b := make([]byte, 0, 256*20)
	for _, s := range h.held.Summary() {
		b = binary.BigEndian.AppendUint32(b, s.Count)
		b = append(b, s.XOR[:]...)
	}
	return b, nil
}

// bucket tells the ids that begin with an octet, each with its SHA-256.
func (h *Holder) bucket(payload []byte, part func([]byte) error) ([]byte, error) {
	if len(payload) != 1 {
		return nil, fmt.Errorf("%w: bucket of %d octets", errFrame, len(payload))
	}
	const most = maxPayload / 48
	var b []byte
	for _, e := range h.held.Bucket(payload[0]) {
		b = append(append(b, e.ID[:]...), e.SHA[:]...)
		if len(b) == most*48 {
			if err := part(b); err != nil {
				return nil, err
			}
			b = b[:0]
		}
	}
	if len(b) > 0 {
		return nil, part(b)
	}
	return nil, nil
}

// graves tells which of the owner's messages were deleted here, while adopted.
func (h *Holder) graves([]byte, func([]byte) error) ([]byte, error) {
	all := h.held.Graves()
	ids := make([]journal.ID, 0, min(len(all), maxIDs))
	for _, g := range all[:min(len(all), maxIDs)] {
		ids = append(ids, g.ID)
	}
	return encodeIDs(ids), nil
}

// forget drops graves that the owner has acted on.
func (h *Holder) forget(payload []byte, _ func([]byte) error) ([]byte, error) {
	ids, err := decodeIDs(payload)
	if err == nil {
		h.held.Forget(ids...)
	}
	return nil, err
}

// get sends a message: its meta, then its octets.
func (h *Holder) get(payload []byte, part func([]byte) error) ([]byte, error) {
	ids, err := decodeIDs(payload)
	if err != nil || len(ids) != 1 {
		return nil, fmt.Errorf("%w: get with %d ids", errFrame, len(ids))
	}
	r, err := h.held.Open(ids[0])
	if err != nil {
		return nil, err
	}
	defer r.Close()
	meta, err := journal.AppendMeta(nil, r.Meta)
	if err == nil {
		err = part(meta)
	}
	if err != nil {
		return nil, err
	}
	octets, buf := io.NewSectionReader(r, 0, r.Meta.Sealed), make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(octets, buf)
		if n > 0 {
			if err := part(buf[:n]); err != nil {
				return nil, err
			}
		}
		switch {
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("%w: %w", journal.ErrDamaged, err)
		}
	}
}

// giveBack ends an adoption: the owner is back.
func (h *Holder) giveBack([]byte, func([]byte) error) ([]byte, error) {
	return nil, h.setAdopted(false, "the owner is back", time.Time{})
}
