package pop3d

import (
	"context"
	"strconv"
	"strings"
)

// transaction answers what is said after login (RFC 1939, sections 5 and 7).
func (s *session) transaction(work context.Context, verb, arg string) error {
	switch verb {
	case "STAT":
		s.number("+OK ", int64(len(s.list)-s.marked), s.left)
		return nil
	case "NOOP":
		s.reply("+OK")
		return nil
	case "RSET":
		s.restore()
		s.number("+OK ", int64(len(s.list)), s.left)
		return nil
	case "LIST", "UIDL":
		if arg == "" {
			return s.listing(verb)
		}
	}
	which, lines, hasLines := strings.Cut(arg, " ")
	n, err := strconv.ParseUint(which, 10, 31)
	if err != nil {
		return s.refuse(verb + " takes the number of a message")
	}
	var cut *top
	if verb == "TOP" {
		n, err := strconv.ParseUint(lines, 10, 63)
		if err != nil {
			return s.refuse("TOP takes the number of a message and of lines")
		}
		cut = &top{lines: n}
	} else if hasLines {
		return s.refuse(verb + " takes one argument")
	}
	if n == 0 || n > uint64(len(s.list)) || s.deleted[n-1] {
		s.reply("-ERR no such message")
		return nil
	}
	i := int(n - 1)
	switch verb {
	case "LIST":
		s.number("+OK ", int64(n), s.list[i].Octets)
	case "UIDL":
		s.unique("+OK ", i)
	case "DELE":
		if s.unread[i] { // nobody who has not got it may have it deleted
			s.reply("-ERR [SYS/TEMP] the message could not be read, so it stays")
			return nil
		}
		s.deleted[i] = true
		s.marked++
		s.left -= s.list[i].Octets
		s.reply("+OK deleted at QUIT")
	default:
		return s.send(work, i, cut)
	}
	return nil
}

// number writes two numbers. It costs no memory, since there may be many.
func (s *session) number(before string, a, b int64) {
	s.out.WriteString(before)
	s.out.Write(strconv.AppendInt(s.out.AvailableBuffer(), a, 10))
	s.out.WriteByte(' ')
	s.out.Write(strconv.AppendInt(s.out.AvailableBuffer(), b, 10))
	s.out.WriteString("\r\n")
}

// unique writes the number of a message and its UIDL.
func (s *session) unique(before string, i int) {
	s.out.WriteString(before)
	s.out.Write(strconv.AppendInt(s.out.AvailableBuffer(), int64(i)+1, 10))
	s.out.WriteByte(' ')
	s.reply(s.list[i].ID)
}

// listing answers LIST or UIDL of all messages.
func (s *session) listing(verb string) error {
	s.reply("+OK " + strconv.Itoa(len(s.list)-s.marked) + " messages, list follows")
	for i, m := range s.list {
		if s.deleted[i] {
			continue
		}
		if verb == "LIST" {
			s.number("", int64(i)+1, m.Octets)
		} else {
			s.unique("", i)
		}
	}
	_, err := s.out.WriteString(".\r\n") // out's first error, if any
	return err
}

// restore takes every deletion mark away.
func (s *session) restore() {
	s.deleted = make([]bool, len(s.list))
	s.marked, s.left = 0, 0
	for _, m := range s.list {
		s.left += m.Octets
	}
}

// quit answers QUIT. After login it is the one place where messages are deleted
// (RFC 1939, section 6).
func (s *session) quit(work context.Context) error {
	if s.marked == 0 {
		s.reply("+OK")
		return endQuit
	}
	which := make([]int, 0, s.marked)
	for i, marked := range s.deleted {
		if marked {
			which = append(which, i)
		}
	}
	s.takeAhead(none)
	if err := s.drop.Delete(work, which); err != nil {
		s.log.Error("pop3 delete failed", "messages", len(which), "err", err)
		s.reply("-ERR [SYS/TEMP] not every message was deleted")
		return endUndeleted
	}
	s.removed = len(which)
	s.srv.metrics.deleted.Add(float64(s.removed))
	s.reply("+OK " + strconv.Itoa(s.removed) + " messages deleted")
	return endQuit
}
