package shadow

import (
	"context"
	"encoding/binary"
	"io"
	"slices"

	"msgw/internal/journal"
)

// put sends a small message, whose octets lie in parts.
func put(ctx context.Context, l *link, meta []byte, parts ...[]byte) error {
	if l == nil {
		return ErrLink
	}
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(meta)))
	_, err := l.main.ask(ctx, kindPut, nil, slices.Concat([][]byte{n[:], meta}, parts)...)
	return err
}

// stream is a large message on its way.
type stream struct {
	link    *link
	lane    *lane
	stored  bool // here, before it was sent
	request uint32
	call    *call
}

// stream begins a large message, on a lane of its own.
func (l *link) stream(ctx context.Context, id journal.ID, stored bool) (*stream, error) {
	if l == nil {
		return nil, ErrLink
	}
	ln, err := l.largeLane(ctx, stored)
	if err != nil {
		return nil, err
	}
	st := &stream{link: l, lane: ln, stored: stored}
	if st.request, st.call, err = ln.begin(nil); err == nil {
		err = ln.out.send(kindBegin, st.request, id[:])
	}
	if err != nil {
		st.cancel()
		return nil, err
	}
	return st, nil
}

func (st *stream) Write(p []byte) (int, error) {
	for part := p; len(part) > 0; {
		n := min(len(part), chunkSize)
		if err := st.lane.out.send(kindChunk, st.request, part[:n]); err != nil {
			return len(p) - len(part), err
		}
		part = part[n:]
	}
	return len(p), nil
}

// cancel gives the message up; the other site drops what it has of it.
func (st *stream) cancel() { st.link.giveBack(st.lane, st.stored, false) }

// finish states what was sent and waits until it is stored.
func (st *stream) finish(ctx context.Context, meta []byte) error {
	err := st.lane.out.send(kindCommit, st.request, meta)
	if err == nil {
		_, err = st.call.wait(ctx)
	}
	st.link.giveBack(st.lane, st.stored, err == nil)
	return err
}

// sendStored sends a message from this site's journal. It waits for the answer as long as
// a sender would.
func (s *Shipper) sendStored(ctx context.Context, l *link, id journal.ID) error {
	r, err := s.own.Open(id)
	if err != nil {
		return err
	}
	defer r.Close()
	head, err := journal.AppendMeta(nil, r.Meta)
	if err != nil {
		return err
	}
	octets := io.NewSectionReader(r, 0, r.Meta.Sealed)
	if r.Meta.Sealed <= inlineMax {
		b, err := io.ReadAll(octets)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, s.times().Wait)
		defer cancel()
		return put(ctx, l, head, b)
	}
	st, err := l.stream(ctx, id, true)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(st, onlyReader{octets}, make([]byte, chunkSize)); err != nil {
		st.cancel()
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.times().Wait)
	defer cancel()
	return st.finish(ctx, head)
}

// onlyReader hides what else a reader can do, so that io.CopyBuffer uses its buffer.
type onlyReader struct{ io.Reader }
