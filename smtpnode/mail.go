package smtpnode

import (
	"strings"

	"github.com/emersion/go-smtp"

	"msgw/internal/lineproto"
)

// cutPrefix removes "FROM:" or "TO:", whatever its case, and spaces behind it.
func cutPrefix(arg, prefix string) (string, bool) {
	if len(arg) < len(prefix) || lineproto.Upper(arg[:len(prefix)]) != prefix {
		return "", false
	}
	return strings.TrimLeft(arg[len(prefix):], " "), true
}

// mailCommand begins a transaction (RFC 5321 section 4.1.1.2).
func (c *conn) mailCommand(arg string) {
	switch {
	case c.helo == "":
		c.refuse(503, "5.5.1", "say EHLO first")
		return
	case c.mail != nil:
		c.replyError(c.outOfOrder("a message is being sent already"))
		return
	}
	path, ok := cutPrefix(arg, "FROM:")
	if !ok {
		c.refuse(501, "5.5.4", "expected MAIL FROM:<address>")
		return
	}
	from, rest, err := parsePath(path)
	if err != nil {
		c.replyError(err)
		return
	}
	opts, err := mailParameters(rest, c.maxSize())
	if err != nil {
		c.replyError(err)
		return
	}
	if !ascii(from) && !opts.UTF8 {
		c.replyError(errNeedsUTF8)
		return
	}
	c.trouble = nil
	if err := c.session.Mail(from, opts); err != nil {
		c.refuseAlike(err)
		return
	}
	c.mail = opts
	c.reply(250, "2.1.0", "sender ok")
}

// RFC 6531 section 3.5.
var errNeedsUTF8 = &smtp.SMTPError{Code: 553, EnhancedCode: smtp.EnhancedCode{5, 6, 7}, Message: "address needs SMTPUTF8"}

// rcptCommand adds a recipient (RFC 5321 section 4.1.1.3).
func (c *conn) rcptCommand(arg string) {
	if c.mail == nil {
		c.replyError(c.outOfOrder("say MAIL first"))
		return
	}
	path, ok := cutPrefix(arg, "TO:")
	if !ok {
		c.refuse(501, "5.5.4", "expected RCPT TO:<address>")
		return
	}
	to, rest, err := parsePath(path)
	if err == nil && to == "" {
		err = bad("expected an address")
	}
	if err == nil && rest != "" {
		err = &smtp.SMTPError{Code: 555, EnhancedCode: smtp.EnhancedCode{5, 5, 4}, Message: "RCPT takes no parameter here"}
	}
	if err == nil && !ascii(to) && !c.mail.UTF8 {
		err = errNeedsUTF8
	}
	if err == nil && c.rcpts >= c.maxRecipients() {
		err = &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 5, 3}, Message: "too many recipients"}
	}
	if err == nil {
		err = c.session.Rcpt(to, &smtp.RcptOptions{})
	}
	if err != nil {
		c.refuseAlike(err)
		return
	}
	c.rcpts++
	c.reply(250, "2.1.5", "recipient ok")
}
