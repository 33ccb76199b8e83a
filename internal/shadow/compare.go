package shadow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"msgw/internal/journal"
)

// maintain brings both sites to hold the same, and keeps them so, over a link. What the
// other site refuses, or this one's journal, is tried again; the rest ends the link.
func (s *Shipper) maintain(ctx context.Context, l *link) error {
	back := false
	next := time.Now() // of the next comparison
	for ctx.Err() == nil {
		err := s.equalise(ctx, l, &back, &next)
		switch {
		case errors.Is(err, errRefused):
			s.mu.Lock()
			s.inTrouble(err)
			s.judge(time.Now())
			s.mu.Unlock()
		case errors.Is(err, ErrLink), errors.Is(err, errFrame), ctx.Err() != nil:
			return err
		case err != nil:
			s.log.Error("the sites cannot be made equal", "err", err)
		}
		if err != nil {
			pause(ctx, s.times().Ping)
			continue
		}
		select {
		case <-s.told:
		case <-time.After(min(s.times().Ping, time.Until(next))):
		case <-ctx.Done():
		}
	}
	return nil
}

// equalise does once what is due: back says that the adoption was ended, next when to
// compare.
func (s *Shipper) equalise(ctx context.Context, l *link, back *bool, next *time.Time) error {
	if !*back || s.adopted.Swap(false) {
		*back = false
		if err := s.takeBack(ctx, l); err != nil {
			return fmt.Errorf("take back what was adopted: %w", err)
		}
		*back = true
	}
	if err := s.sendDeletions(ctx, l); err != nil {
		return fmt.Errorf("tell what was deleted: %w", err)
	}
	if time.Now().Before(*next) && !s.hurt.Swap(false) {
		return nil
	}
	if err := s.takeGraves(ctx, l); err != nil {
		return fmt.Errorf("hear what was deleted: %w", err)
	}
	if err := s.repair(ctx, l); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	if err := s.compare(ctx, l); err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	*next = time.Now().Add(s.times().Compare)
	return nil
}

// takeBack ends the other site's adoption and acts on what was deleted there
// meanwhile. Only then are this site's messages listed here.
func (s *Shipper) takeBack(ctx context.Context, l *link) error {
	if _, err := s.question(ctx, l, kindReturn, nil); err != nil {
		return err
	}
	if err := s.takeGraves(ctx, l); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listable = true
	return nil
}

// takeGraves deletes here what was deleted at the other site.
func (s *Shipper) takeGraves(ctx context.Context, l *link) error {
	for {
		b, err := s.question(ctx, l, kindGraves, nil)
		if err != nil || len(b) == 0 {
			return err
		}
		ids, err := decodeIDs(b)
		if err != nil {
			return err
		}
		if err := s.own.Delete(ids...); err != nil {
			return err
		}
		s.log.Info("messages were handed over by the other site", "messages", len(ids))
		if _, err := s.question(ctx, l, kindForget, nil, b); err != nil {
			return err
		}
	}
}

// sendDeletions tells the other site what was deleted here.
func (s *Shipper) sendDeletions(ctx context.Context, l *link) error {
	graves := s.own.Graves()
	for len(graves) > 0 {
		n := min(len(graves), maxIDs)
		ids := make([]journal.ID, n)
		for i, g := range graves[:n] {
			ids[i] = g.ID
		}
		if _, err := s.question(ctx, l, kindDrop, nil, encodeIDs(ids)); err != nil {
			return err
		}
		s.own.Forget(ids...)
		s.mu.Lock()
		for _, id := range ids {
			if s.tickets[id] == nil {
				delete(s.missing, id)
				delete(s.conflicts, id)
			}
		}
		s.mu.Unlock()
		graves = graves[n:]
	}
	return nil
}

// compare finds out what only one site holds. What is missing there is sent, what is
// missing here is fetched, unless it was deleted.
func (s *Shipper) compare(ctx context.Context, l *link) error {
	s.mu.Lock()
	before := slices.Collect(maps.Keys(s.conflicts))
	s.mu.Unlock()
	b, err := s.question(ctx, l, kindSummary, nil)
	if err != nil {
		return err
	}
	if len(b) != 256*20 {
		return fmt.Errorf("%w: summary of %d octets", errFrame, len(b))
	}
	own, equal := s.own.Summary(), [256]bool{}
	var differ []byte
	for i := range own {
		theirs := journal.Bucket{Count: binary.BigEndian.Uint32(b[20*i:]), XOR: [16]byte(b[20*i+4 : 20*i+20])}
		if equal[i] = own[i] == theirs; !equal[i] {
			differ = append(differ, byte(i))
		}
	}
	lost, err := s.compareBuckets(ctx, l, differ)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range before {
		if equal[id[0]] {
			delete(s.conflicts, id) // one of the two is gone
		}
	}
	s.lost = lost
	if !s.compared {
		s.log.Info("the sites have compared what they hold", "single", len(s.missing), "conflicts", len(s.conflicts))
	}
	s.compared = true
	s.judge(time.Now())
	return nil
}

// comparing is how many buckets are compared at a time: the way between the sites may be
// long.
const comparing = 8

// compareBuckets compares the messages of some buckets, and returns how many could not be
// fetched.
func (s *Shipper) compareBuckets(ctx context.Context, l *link, buckets []byte) (lost int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range min(comparing, len(buckets)) {
		wg.Go(func() {
			for {
				mu.Lock()
				if len(buckets) == 0 || err != nil {
					mu.Unlock()
					return
				}
				b := buckets[0]
				buckets = buckets[1:]
				mu.Unlock()
				n, berr := s.compareBucket(ctx, l, b)
				mu.Lock()
				if lost += n; berr != nil && err == nil {
					err = berr // what follows is its consequence
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return lost, err
}

// maxBucket bounds the ids that a bucket may have: a hundred million messages are a
// third of it.
const maxBucket = 1 << 20

// compareBucket compares the messages whose ids begin with an octet, and returns how
// many could not be fetched.
func (s *Shipper) compareBucket(ctx context.Context, l *link, bucket byte) (lost int, err error) {
	theirs := map[journal.ID][32]byte{}
	_, err = s.question(ctx, l, kindBucket, func(part []byte) error {
		if len(part)%48 != 0 {
			return fmt.Errorf("%w: part of a bucket of %d octets", errFrame, len(part))
		}
		for ; len(part) > 0; part = part[48:] {
			if part[0] != bucket || len(theirs) == maxBucket {
				return fmt.Errorf("%w: a bucket with what is not in it", errFrame)
			}
			theirs[journal.ID(part[:16])] = [32]byte(part[16:48])
		}
		return nil
	}, []byte{bucket})
	if err != nil {
		return 0, err
	}
	graves := map[journal.ID]bool{}
	for _, g := range s.own.Graves() {
		graves[g.ID] = true
	}
	for _, e := range s.own.Bucket(bucket) {
		sha, held := theirs[e.ID]
		delete(theirs, e.ID)
		s.mu.Lock()
		switch {
		case held && sha == e.SHA:
			delete(s.conflicts, e.ID)
			if s.tickets[e.ID] == nil {
				delete(s.missing, e.ID)
			}
		case held:
			s.conflicts[e.ID] = struct{}{}
			s.judge(time.Now())
			s.log.Error("the sites hold different messages under one id", "id", e.ID.String())
		default:
			s.miss(e.ID)
		}
		s.mu.Unlock()
	}
	for id := range theirs {
		// Those that are being stored or deleted at this moment are no loss.
		s.mu.Lock()
		coming := s.tickets[id] != nil
		s.mu.Unlock()
		if _, ok := s.own.Has(id); ok || coming || graves[id] {
			continue
		}
		fetched, err := s.fetch(ctx, l, id)
		if err != nil {
			return 0, err
		}
		if !fetched {
			lost++
		}
	}
	return lost, nil
}

// questionTime bounds how long an answer may take, and getTime one that is a message.
const (
	questionTime = 2 * time.Minute
	getTime      = time.Hour
)

// question asks the other site for anything but to store a message.
func (s *Shipper) question(ctx context.Context, l *link, k kind, data func([]byte) error, parts ...[]byte) ([]byte, error) {
	d := questionTime
	if k == kindGet {
		d = getTime
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return l.main.ask(ctx, k, data, parts...)
}

// get gets a message from the other site. The caller discards the body.
func (s *Shipper) get(ctx context.Context, l *link, id journal.ID) (meta journal.Meta, body *journal.Body, err error) {
	var octets int64
	_, err = s.question(ctx, l, kindGet, func(part []byte) (err error) {
		if body == nil {
			if meta, err = journal.ParseMeta(part); err == nil && meta.ID != id {
				err = fmt.Errorf("%w: %s instead of %s", errFrame, meta.ID, id)
			}
			body = s.own.NewBody(id)
			return err
		}
		if octets += int64(len(part)); octets > meta.Sealed {
			return fmt.Errorf("%w: more octets than %s has", errFrame, id)
		}
		_, _ = body.Write(part) // kept in the body, said when it is stored
		return nil
	}, id[:])
	if err == nil && body == nil {
		err = fmt.Errorf("%w: an answer without a message", errFrame)
	}
	if err != nil && body != nil {
		body.Discard()
		body = nil
	}
	return meta, body, err
}

// fetch brings back a message of this site that only the other one holds. false means
// that this failed and that the other one still holds it, for all that is known.
func (s *Shipper) fetch(ctx context.Context, l *link, id journal.ID) (bool, error) {
	meta, body, err := s.get(ctx, l, id)
	if errors.Is(err, errRefused) {
		s.log.Warn("a message that is missing here cannot be fetched", "id", id.String(), "err", err)
		return errors.Is(err, journal.ErrNotFound), nil
	}
	if err != nil {
		return false, err
	}
	defer body.Discard()
	switch err := s.own.Restore(meta, body); {
	case errors.Is(err, journal.ErrHeld), errors.Is(err, journal.ErrDeleted):
	case err != nil:
		s.log.Error("a message that is missing here cannot be stored", "id", id.String(), "err", err)
		return false, nil
	default:
		s.log.Warn("a message that was missing here was fetched from the other site", "id", id.String(), "mailbox", meta.Mailbox)
	}
	return true, nil
}
