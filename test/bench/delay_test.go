//go:build bench && peers

package bench

import (
	"bytes"
	"errors"
	"io"
	"net"
	"time"
)

// delayProgram forwards the connections to an address to another one, and every octet
// takes a time each way, as over a line of that length: address, forward to, time.
func delayProgram(args []string) error {
	delay, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	for {
		near, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer near.Close()
			time.Sleep(2 * delay) // the handshake
			far, err := net.Dial("tcp", args[1])
			if err != nil {
				return
			}
			defer far.Close()
			ended := make(chan struct{}, 2)
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					carry(way[1], way[0], delay)
					ended <- struct{}{}
				}()
			}
			<-ended
			<-ended
		}()
	}
}

// parcel is what one read returned.
type parcel struct {
	octets []byte
	due    time.Time
	err    error
}

// onTheWay bounds what is under way in one direction: enough for a busy line.
const onTheWay = 1024

// carry copies from src to dst, each octet late by delay.
func carry(dst, src net.Conn, delay time.Duration) {
	line, stopped := make(chan parcel, onTheWay), make(chan struct{})
	go func() {
		defer close(line)
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			select {
			case line <- parcel{bytes.Clone(buf[:n]), time.Now().Add(delay), err}:
			case <-stopped:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range line {
		time.Sleep(time.Until(p.due))
		_, err := dst.Write(p.octets)
		switch {
		case errors.Is(p.err, io.EOF):
			dst.(*net.TCPConn).CloseWrite()
		case p.err != nil || err != nil: // both ends shall know
			dst.Close()
			src.Close()
			close(stopped)
			return
		}
	}
}
