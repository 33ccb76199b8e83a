package shadow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"msgw/internal/journal"
)

// Repair tells the Shipper that damage was found in this site's journal, so that it is
// repaired soon.
func (s *Shipper) Repair() {
	s.hurt.Store(true)
	wake(s.told)
}

// repair mends what is damaged at one site from the copy of the other.
func (s *Shipper) repair(ctx context.Context, l *link) error {
	beyond := map[journal.ID]struct{}{} // what could not be repaired
	mended := 0
	note := func(id journal.ID, where string, err error) {
		if err == nil {
			mended++
			s.log.Warn("a damaged message was repaired from the copy of the other site", "id", id.String(), "at", where)
			return
		}
		beyond[id] = struct{}{}
		if _, known := s.beyond[id]; !known {
			s.log.Error("a damaged message cannot be repaired from the copy of the other site", "id", id.String(), "at", where, "err", err)
		}
	}
	for _, id := range damaged(s.own) {
		err := s.repairOwn(ctx, l, id)
		switch {
		case errors.Is(err, ErrLink), errors.Is(err, errFrame), ctx.Err() != nil:
			return err
		case errors.Is(err, errGone): // it was deleted meanwhile
		default:
			note(id, "this site", err)
		}
	}
	b, err := s.question(ctx, l, kindDamaged, nil)
	if err != nil {
		return err
	}
	theirs, err := decodeIDs(b)
	if err != nil {
		return err
	}
	for _, id := range theirs {
		err := s.sendStored(ctx, l, id)
		switch {
		case errors.Is(err, ErrLink), ctx.Err() != nil:
			return err
		case errors.Is(err, journal.ErrNotFound): // not this site's any more; its deletion is on its way
		default:
			note(id, "the other site", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beyond = beyond
	s.mended += mended
	s.judge(time.Now())
	return nil
}

// damaged returns the messages that j knows to be damaged, as many as fit into a frame.
func damaged(j *journal.Journal) (ids []journal.ID) {
	for _, d := range j.Damaged() {
		if d.ID != (journal.ID{}) && len(ids) < maxIDs {
			ids = append(ids, d.ID)
		}
	}
	return ids
}

var errGone = errors.New("message is not here any more")

// repairOwn puts the other site's copy in the place of a damaged message.
func (s *Shipper) repairOwn(ctx context.Context, l *link, id journal.ID) error {
	if _, ok := s.own.Has(id); !ok {
		return errGone
	}
	_, body, err := s.get(ctx, l, id)
	if err != nil {
		return err
	}
	defer body.Discard()
	if err := s.own.Replace(id, body); errors.Is(err, journal.ErrNotFound) {
		return errGone
	} else if err != nil {
		return err
	}
	return nil
}

// damaged tells which copies are damaged.
func (h *Holder) damaged([]byte, func([]byte) error) ([]byte, error) {
	return encodeIDs(damaged(h.held)), nil
}

// mend replaces a copy that is damaged by one that the owner has sent again.
func (h *Holder) mend(meta journal.Meta, b *journal.Body) error {
	for _, id := range damaged(h.held) {
		if id == meta.ID {
			if err := h.held.Replace(id, b); err != nil {
				return fmt.Errorf("repair: %w", err)
			}
			h.log.Warn("a damaged copy was repaired by the other site", "id", id.String())
		}
	}
	return nil
}
