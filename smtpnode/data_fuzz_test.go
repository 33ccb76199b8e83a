package smtpnode

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/textproto"
	"regexp"
	"testing"
	"testing/iotest"
)

var bareCRLF = regexp.MustCompile(`\r[^\n]|\r\z|(?:\A|[^\r])\n`)

// FuzzDataReader compares dataReader, whose reads and whose reader's reads are broken
// up in any way, with function dots, and with net/textproto where that agrees on what
// a line is.
func FuzzDataReader(f *testing.F) {
	for _, m := range exact {
		if len(m.wire) < 1000 {
			f.Add([]byte(m.wire+"QUIT\r\n"), []byte{1, 2, 3}, byte(0), uint16(1000))
		}
	}
	f.Add([]byte("a\r\n\n.\r\nb\r\n.\r\n"), []byte{9}, byte(0), uint16(100))
	f.Add([]byte("x\r\r\n.\r\n.\r\n"), []byte{}, byte(1), uint16(2))
	f.Add([]byte("a\r\n.\r\n"), []byte{1}, byte(3), uint16(3))
	f.Add([]byte("aaaaaaaaaaaaaa\r\n.\r"), []byte{16}, byte(2), uint16(9))
	f.Fuzz(func(t *testing.T, wire, sizes []byte, how byte, limit uint16) {
		in := io.Reader(bytes.NewReader(wire))
		switch how % 4 {
		case 1:
			in = iotest.OneByteReader(in)
		case 2:
			in = iotest.HalfReader(in)
		case 3:
			in = iotest.DataErrReader(in)
		}
		br := bufio.NewReaderSize(in, 16+int(how)) // the smallest there is, or some more
		r := &dataReader{br: br, left: int64(limit), patience: int64(len(wire)) + 1}
		var got []byte
		var err error
		for i := 0; err == nil; i++ {
			size := 7
			if len(sizes) > 0 {
				size = int(sizes[i%len(sizes)])
			}
			if i > 2*len(wire)+len(sizes)+2 {
				size = 7 // not for ever nothing
			}
			p := bytes.Repeat([]byte{0xee}, size+1)
			var n int
			n, err = r.Read(p[:size])
			if got = append(got, p[:n]...); p[size] != 0xee {
				t.Fatal("read beyond the end of p")
			}
		}
		if n, again := r.Read(make([]byte, 9)); n != 0 || !errors.Is(again, err) {
			t.Fatalf("after %v: %d octets, %v", err, n, again)
		}
		want, rest, whole := dots(wire)
		switch {
		case err == io.EOF:
			if !whole || !bytes.Equal(got, want) || len(want) > int(limit) {
				t.Fatalf("ended with %q, expected %q, whole %v, limit %d", got, want, whole, limit)
			}
		case errors.Is(err, errTooLarge):
			if len(want) <= int(limit) || !bytes.Equal(got, want[:limit]) {
				t.Fatalf("too large for %d with %q, expected %q", limit, got, want)
			}
		case err == io.ErrUnexpectedEOF:
			// What could be the begin of the end was not given out.
			if whole || len(got) > int(limit) || !bytes.HasPrefix(want, got) || len(want)-len(got) > 2 && len(got) < int(limit) {
				t.Fatalf("cut off with %q, expected %q, whole %v", got, want, whole)
			}
		default:
			t.Fatal(err)
		}
		drained := r.drain()
		left, _ := io.ReadAll(br)
		if whole && (drained != nil || !bytes.Equal(left, rest)) {
			t.Fatalf("drained: %v, then %q, expected %q", drained, left, rest)
		}
		if !whole && (drained != io.ErrUnexpectedEOF || len(left) > 2) {
			t.Fatalf("drained: %v, then %q", drained, left)
		}
		if whole && !bareCRLF.Match(wire[:len(wire)-len(rest)]) {
			lf, err := io.ReadAll(textproto.NewReader(bufio.NewReader(bytes.NewReader(wire))).DotReader())
			if err != nil || !bytes.Equal(lf, bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n"))) {
				t.Fatalf("net/textproto reads %q, %v, this reads %q", lf, err, want)
			}
		}
	})
}
