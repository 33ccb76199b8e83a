package sender

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"iter"
	"strconv"
	"time"
)

var crlf = []byte("\r\n")

// transfer runs one mail transaction.
func (x *Session) transfer(ctx context.Context, env Envelope, msg []byte) (Result, *Error) {
	res := Result{Host: x.to.host, Preference: x.to.preference, Addr: x.to.addr, TLS: x.tls}
	if x.dead != nil {
		return res, x.fail("MAIL", fmt.Errorf("session is over: %w", x.dead))
	}
	stop := context.AfterFunc(ctx, x.abort)
	fail := x.transaction(env, msg, &res)
	if !stop() {
		x.dead = ctx.Err()
		if fail != nil && fail.Err != nil {
			fail.Err = fmt.Errorf("%w: %w", ctx.Err(), fail.Err)
		}
	}
	return res, fail
}

func (x *Session) transaction(env Envelope, msg []byte, res *Result) *Error {
	if x.begun {
		rep, fail := x.command("RSET")
		if fail != nil {
			return fail
		}
		if rep.code != 250 {
			return x.refused("RSET", rep)
		}
		x.begun = false
	}
	accepted, refused, fail := x.envelope(env, msg)
	if fail != nil {
		return fail
	}
	var final reply
	if env.Chunks != nil {
		final, fail = x.bdat(env.Chunks, msg)
	} else {
		final, fail = x.data(msg)
	}
	if fail != nil {
		return fail
	}
	x.begun = false
	res.Accepted, res.IDs = accepted, final.ids()
	return refused
}

// envelope says MAIL and RCPT, in one go if the server allows it. It returns who
// was accepted, at least one, and the first refusal.
func (x *Session) envelope(env Envelope, msg []byte) (accepted []string, refused, fail *Error) {
	params, fail := x.parameters(env, msg)
	if fail != nil {
		return nil, nil, fail
	}
	lines := []string{"MAIL FROM:<" + env.From + ">" + params}
	for _, to := range env.To {
		lines = append(lines, "RCPT TO:<"+to+">")
	}
	_, pipelining := x.offers["PIPELINING"]
	if pipelining { // RFC 2920
		for _, line := range lines {
			x.w.WriteString(line)
			x.w.Write(crlf)
		}
		if err := x.w.Flush(); err != nil {
			return nil, nil, x.lost("MAIL", err)
		}
	}
	x.begun = true
	for i, line := range lines {
		stage := line[:4]
		if !pipelining {
			if err := x.write(line); err != nil {
				return nil, nil, x.lost(stage, err)
			}
		}
		rep, err := x.readReply(x.cfg.Timeouts.Reply)
		if err != nil {
			return nil, nil, x.fail(stage, err)
		}
		switch {
		case i == 0 && rep.code != 250:
			fail = x.refused(stage, rep)
			if !pipelining {
				return nil, nil, fail
			}
		case fail != nil: // of a MAIL refused; what RCPT gets then is no news
		case i > 0 && (rep.code == 250 || rep.code == 251):
			accepted = append(accepted, env.To[i-1])
		case i > 0:
			e := x.refused(stage, rep)
			e.Recipient = env.To[i-1]
			// If all are refused, one that may be taken later decides.
			if refused == nil || e.Temporary && !refused.Temporary {
				refused = e
			}
		}
		if x.dead != nil {
			break
		}
	}
	if fail == nil && (len(accepted) == 0 || x.dead != nil) {
		fail = refused
	}
	return accepted, refused, fail
}

// data sends msg by DATA (RFC 5321 section 4.1.1.4).
func (x *Session) data(msg []byte) (reply, *Error) {
	rep, fail := x.command("DATA")
	if fail != nil {
		return reply{}, fail
	}
	if rep.code != 354 {
		return reply{}, x.refused("DATA", rep)
	}
	writeStuffed(x.w, msg)
	x.w.WriteString(".\r\n")
	if err := x.w.Flush(); err != nil {
		return reply{}, x.lost("DATA", err)
	}
	return x.final(x.readReply(x.cfg.Timeouts.Final))
}

// final judges the reply to the end of a message all of which was sent.
func (x *Session) final(rep reply, err error) (reply, *Error) {
	if err != nil {
		fail := x.fail("end of message", err)
		fail.MaybeAccepted = true
		return reply{}, fail
	}
	if rep.code != 250 {
		return reply{}, x.refused("end of message", rep)
	}
	return rep, nil
}

// stuffedWriter is what writeStuffed needs; errors are the writer's to keep.
type stuffedWriter interface {
	Write([]byte) (int, error)
	WriteByte(byte) error
}

// writeStuffed writes msg, which is empty or ends with CRLF, with a dot before each
// dot that begins a line (RFC 5321 section 4.5.2). Only CRLF ends a line.
func writeStuffed(w stuffedWriter, msg []byte) {
	for len(msg) > 0 {
		if msg[0] == '.' {
			w.WriteByte('.')
		}
		end := len(msg)
		if i := bytes.Index(msg, crlf); i >= 0 {
			end = i + len(crlf)
		}
		w.Write(msg[:end])
		msg = msg[end:]
	}
}

// bdat sends msg in chunks (RFC 3030 section 2).
func (x *Session) bdat(c *Chunks, msg []byte) (reply, *Error) {
	if c.Pipelined {
		return x.bdatPipelined(c, msg)
	}
	for chunk, last := range c.cut(msg) {
		if err := x.writeChunk(chunk, last); err != nil {
			return reply{}, x.lost("BDAT", err)
		}
		if err := x.w.Flush(); err != nil {
			return reply{}, x.lost("BDAT", err)
		}
		if last {
			break
		}
		rep, err := x.readReply(x.cfg.Timeouts.Reply)
		if err != nil {
			return reply{}, x.fail("BDAT", err)
		}
		if rep.code != 250 {
			return reply{}, x.refused("BDAT", rep)
		}
	}
	return x.final(x.readReply(x.cfg.Timeouts.Final))
}

func (x *Session) writeChunk(chunk []byte, last bool) error {
	x.w.WriteString("BDAT " + strconv.Itoa(len(chunk)))
	if last {
		x.w.WriteString(" LAST")
	}
	x.w.Write(crlf)
	_, err := x.w.Write(chunk)
	return err
}

// bdatPipelined sends all chunks without waiting and reads the replies meanwhile,
// so that neither side can block the other (RFC 3030 section 4.2).
func (x *Session) bdatPipelined(c *Chunks, msg []byte) (reply, *Error) {
	total := 0
	for range c.cut(msg) {
		total++
	}
	// From here on the deadlines are the writer's; see patient.
	if err := x.conn.SetDeadline(time.Now().Add(x.cfg.Timeouts.Block)); err != nil {
		return reply{}, x.fail("BDAT", err)
	}
	done := make(chan chunkReplies, 1)
	go func() {
		got := readChunkReplies(x.r, total)
		if got.err != nil {
			x.abort() // nobody reads the rest: let the writer know
		}
		done <- got
	}()
	var werr error
	for chunk, last := range c.cut(msg) {
		if werr = x.writeChunk(chunk, last); werr != nil {
			break
		}
	}
	if werr == nil {
		werr = x.w.Flush()
	}
	wait := x.cfg.Timeouts.Final
	if werr != nil {
		wait = time.Second // for what the server said before it closed the connection
	}
	if err := x.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		x.abort()
	}
	got := <-done
	if got.err != nil {
		x.dead = got.err
	}
	switch {
	case got.refusal != nil:
		fail := x.refused("BDAT", *got.refusal)
		fail.MaybeAccepted = got.err == nil && got.last.code == 250
		return reply{}, fail
	case got.err != nil && werr == nil:
		return x.final(reply{}, got.err)
	case got.err != nil:
		return reply{}, x.fail("BDAT", got.err)
	}
	return got.last, nil
}

// chunkReplies is what a server said to chunks sent without waiting.
type chunkReplies struct {
	refusal *reply // the first that was not 250
	last    reply
	err     error // why not all of them came
}

func readChunkReplies(r *bufio.Reader, total int) chunkReplies {
	var got chunkReplies
	for range total {
		rep, err := parseReply(r)
		if err != nil {
			got.err = err
			return got
		}
		got.last = rep
		if rep.code != 250 && got.refusal == nil {
			got.refusal = &rep
		}
	}
	return got
}

// cut yields the chunks of msg, the last one marked.
func (c *Chunks) cut(msg []byte) iter.Seq2[[]byte, bool] {
	return func(yield func([]byte, bool) bool) {
		rest := msg
		for i := 0; len(rest) > 0; i++ {
			n := min(c.Sizes[i%len(c.Sizes)], len(rest))
			chunk := rest[:n]
			rest = rest[n:]
			last := len(rest) == 0 && !c.EmptyLast
			if !yield(chunk, last) || last {
				return
			}
		}
		yield(nil, true)
	}
}
