package journal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// verifyChunk is how much is read at a time.
const verifyChunk = 256 << 10

// Verify reads every live message and checks its record, checksum and SHA-256, which
// needs no key. f is told each, with nil or an error that is ErrDamaged. What is damaged
// is listed by Damaged from then on. Verify returns early when ctx ends,
// the journal is closed, or this machine has no files left to open.
func (j *Journal) Verify(ctx context.Context, f func(Meta, error)) error {
	return j.verifyAll(ctx, f, func(int) error { return ctx.Err() })
}

// verifyAll is Verify with a rate: pace is told how much was read.
func (j *Journal) verifyAll(ctx context.Context, f func(Meta, error), pace func(int) error) error {
	buf := make([]byte, verifyChunk)
	for m := range j.All {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := j.verify(m.ID, buf, pace)
		switch {
		case errors.Is(err, ErrNotFound):
			continue // deleted meanwhile
		case err != nil && !errors.Is(err, ErrDamaged):
			return err
		}
		f(m, err)
	}
	return nil
}

// Check is Verify for one message.
func (j *Journal) Check(ctx context.Context, id ID) error {
	return j.verify(id, make([]byte, verifyChunk), func(int) error { return ctx.Err() })
}

// verify checks one message.
func (j *Journal) verify(id ID, buf []byte, pace func(int) error) error {
	s, err := j.open(id)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.checkRecord(); err != nil {
		return j.harmed(s, err)
	}
	sum, octets := sha256.New(), io.NewSectionReader(s.octets, s.at, s.meta.Sealed)
	for {
		n, err := io.ReadFull(octets, buf)
		sum.Write(buf[:n])
		if perr := pace(n + prefixSize); perr != nil {
			return perr
		}
		switch {
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			if [32]byte(sum.Sum(nil)) != s.meta.SHA256 {
				return j.harmed(s, errSHA)
			}
			return nil
		case err != nil:
			return j.harmed(s, err)
		}
	}
}

var (
	errSHA    = errors.New("SHA-256 mismatch")
	errRecord = errors.New("its record is another one")
)

// checkRecord compares the record on the disk with what is known of it.
func (s *source) checkRecord() error {
	r, err := readRecord(s.seg.file, s.start, maxSegment)
	if err != nil {
		return err
	}
	if r.kind != kindMessage || r.bodyCRC != s.bodyCRC || r.meta != s.meta {
		return errRecord
	}
	return nil
}

// harmed notes that a message is damaged, once, and returns the error to give.
func (j *Journal) harmed(s *source, cause error) error {
	err := fmt.Errorf("%s: %w: %s at offset %d: %w", s.meta.ID, ErrDamaged, s.path, s.at, cause)
	d := Damage{File: s.path, Offset: s.at, ID: s.meta.ID, Err: cause}
	j.mu.Lock()
	known := j.entry(d.ID) != s.entry
	for _, x := range j.damage {
		known = known || x.ID == d.ID
	}
	if !known {
		j.damage = append(j.damage, d)
	}
	j.mu.Unlock()
	if !known {
		j.log.Error("journal is damaged: a message is not what was written", "id", d.ID.String(), "file", d.File, "offset", d.Offset, "err", cause)
		if j.opt.OnDamage != nil {
			j.opt.OnDamage(d)
		}
	}
	return err
}

// scrubber verifies all messages again and again, until ctx ends.
func (j *Journal) scrubber(ctx context.Context) {
	t := time.NewTicker(j.opt.ScrubEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		start, messages, bad := time.Now(), 0, 0
		err := j.verifyAll(ctx, func(_ Meta, err error) {
			if messages++; err != nil {
				bad++
			}
		}, func(n int) error { return j.pace(n, j.opt.ScrubRate) })
		if err != nil && ctx.Err() == nil {
			j.log.Warn("verification of the journal ended early", "err", err)
		}
		j.log.Info("journal was verified", "messages", messages, "damaged", bad, "took", time.Since(start).Round(time.Second))
	}
}

// readInline reads and checks a body that lies in a segment. Its checksum is enough if
// the record is as it was; else its octets are what was written if they have the
// SHA-256 that is known from elsewhere.
func (j *Journal) readInline(s *source) ([]byte, error) {
	b := takeInline(s.meta.Sealed)
	if n, err := s.octets.ReadAt(b, s.at); n < len(b) {
		return nil, j.harmed(s, err)
	}
	if crc32.Checksum(b, castagnoli) != s.bodyCRC {
		return nil, j.harmed(s, errCRC)
	}
	if err := s.checkRecord(); err != nil {
		harm := j.harmed(s, err)
		if sha256.Sum256(b) != s.meta.SHA256 {
			return nil, harm
		}
	}
	return b, nil
}
