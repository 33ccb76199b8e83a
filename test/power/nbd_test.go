//go:build power

package power

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// Of the NBD protocol,
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
const (
	nbdMagic      = 0x4e42444d41474943 // "NBDMAGIC"
	nbdHaveOption = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptReply   = 0x0003e889045565a9
	nbdRequest    = 0x25609513
	nbdReply      = 0x67446698

	nbdFixedNewstyle, nbdNoZeroes = 1, 2

	nbdOptExportName, nbdOptAbort, nbdOptInfo, nbdOptGo = 1, 2, 6, 7

	nbdRepAck, nbdRepInfo, nbdRepUnsupported = 1, 3, 1<<31 + 1

	nbdHasFlags, nbdSendFlush, nbdSendFUA = 1, 4, 8

	nbdRead, nbdWrite, nbdDisconnect, nbdFlush = 0, 1, 2, 3
	nbdFlagFUA                                 = 1
	nbdInvalid                                 = 22 // error of a reply

	nbdMaxRequest = 32 << 20 // octets, as the protocol advises
)

// server serves a disk to one machine.
type server struct {
	disk *disk
	l    net.Listener
	done sync.WaitGroup
	err  error // read after stop
}

// serve listens on the socket; stop ends it.
func (d *disk) serve(socket string) (*server, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	s := &server{disk: d, l: l}
	s.done.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return // nobody came before stop
		}
		defer c.Close()
		// A machine without power ends in the middle of anything.
		if err := s.session(c); err != nil && d.on() {
			s.err = fmt.Errorf("disk: %w", err)
		}
	})
	return s, nil
}

// stop returns when the machine's connection has ended; it has to be off by then.
func (s *server) stop() error {
	s.l.Close()
	s.done.Wait()
	return s.err
}

func (s *server) session(c net.Conn) error {
	r, w := bufio.NewReaderSize(c, 1<<20), bufio.NewWriterSize(c, 1<<20)
	if err := s.negotiate(r, w); err != nil {
		return err
	}
	var head [28]byte
	for {
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return nil // killed: the rest of what it sent is not worth a look
			}
		}
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
		offset, length := int64(binary.BigEndian.Uint64(head[16:])), int64(binary.BigEndian.Uint32(head[24:]))
		if binary.BigEndian.Uint32(head[:]) != nbdRequest || length > nbdMaxRequest {
			return fmt.Errorf("request % x", head)
		}
		inside := offset >= 0 && offset%sector == 0 && length%sector == 0 && offset <= s.disk.size-length
		var data, answer []byte
		if kind == nbdWrite {
			data = make([]byte, length)
			if _, err := io.ReadFull(r, data); err != nil {
				return err
			}
		}
		on, code := true, uint32(0)
		switch {
		case kind == nbdDisconnect:
			return nil
		case kind == nbdFlush:
			on = s.disk.flush()
		case kind == nbdRead && inside:
			answer = make([]byte, length)
			on = s.disk.read(answer, offset)
		case kind == nbdWrite && inside:
			on = s.disk.write(data, offset, flags&nbdFlagFUA != 0)
		default:
			code = nbdInvalid
		}
		if !on {
			// What was answered before the power went may still arrive.
			_ = w.Flush()
			_, err := io.Copy(io.Discard, r)
			return err
		}
		b := binary.BigEndian.AppendUint32(nil, nbdReply)
		b = binary.BigEndian.AppendUint32(b, code)
		w.Write(append(b, head[8:16]...)) // a failed write shows at Flush
		w.Write(answer)
	}
}

func (s *server) negotiate(r io.Reader, w *bufio.Writer) error {
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(w, binary.BigEndian, v) // a failed write shows at Flush
		}
	}
	put(uint64(nbdMagic), uint64(nbdHaveOption), uint16(nbdFixedNewstyle|nbdNoZeroes))
	if err := w.Flush(); err != nil {
		return err
	}
	var client uint32
	if err := binary.Read(r, binary.BigEndian, &client); err != nil {
		return err
	}
	const flags = uint16(nbdHasFlags | nbdSendFlush | nbdSendFUA)
	for {
		var option struct {
			Magic        uint64
			Kind, Length uint32
		}
		if err := binary.Read(r, binary.BigEndian, &option); err != nil {
			return err
		}
		if option.Magic != nbdHaveOption || option.Length > 4096 {
			return fmt.Errorf("option %+v", option)
		}
		if _, err := io.CopyN(io.Discard, r, int64(option.Length)); err != nil {
			return err
		}
		switch option.Kind {
		case nbdOptExportName:
			put(uint64(s.disk.size), flags)
			if client&nbdNoZeroes == 0 {
				put([124]byte{})
			}
			return w.Flush()
		case nbdOptInfo, nbdOptGo:
			put(uint64(nbdOptReply), option.Kind, uint32(nbdRepInfo), uint32(12), uint16(0), uint64(s.disk.size), flags)
			put(uint64(nbdOptReply), option.Kind, uint32(nbdRepAck), uint32(0))
		case nbdOptAbort:
			put(uint64(nbdOptReply), option.Kind, uint32(nbdRepAck), uint32(0))
			return w.Flush()
		default:
			put(uint64(nbdOptReply), option.Kind, uint32(nbdRepUnsupported), uint32(0))
		}
		if err := w.Flush(); err != nil || option.Kind == nbdOptGo {
			return err
		}
	}
}
