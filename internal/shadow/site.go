package shadow

import "msgw/internal/journal"

// Site is what the archive gets at a site: its own messages, once the other site has
// said which of them it handed over, and those of the other site while they are adopted.
type Site struct {
	Shipper *Shipper
	Holder  *Holder
}

// Mail is a message that waits, with the journal that it lies in.
type Mail struct {
	journal.Meta
	From *journal.Journal
}

// List returns what waits in a mailbox, no id twice (RFC 1939 section 7).
func (s Site) List(mailbox string) []Mail {
	var own []journal.Meta
	if s.Shipper.Listable() {
		own = s.Shipper.own.List(mailbox)
	}
	held := s.Holder.List(mailbox)
	mail := make([]Mail, 0, len(own)+len(held)) // there may be many
	for _, m := range own {
		mail = append(mail, Mail{m, s.Shipper.own})
	}
	if len(held) == 0 {
		return mail
	}
	listed := make(map[journal.ID]bool, len(own))
	for _, m := range own {
		listed[m.ID] = true
	}
	for _, m := range held {
		if !listed[m.ID] {
			mail = append(mail, Mail{m, s.Holder.held})
		}
	}
	return mail
}

// Delete makes the deletion of messages durable. The other site hears of it soon, or when
// it is back. Some may be deleted although an error is returned.
func (s Site) Delete(mail ...Mail) error {
	var own, copies []journal.ID
	for _, m := range mail {
		if m.From == s.Holder.held {
			copies = append(copies, m.ID)
		} else {
			own = append(own, m.ID)
		}
	}
	if len(own) > 0 {
		if err := s.Shipper.own.Delete(own...); err != nil {
			return err
		}
		s.Shipper.Deleted(own...)
	}
	if len(copies) > 0 {
		return s.Holder.held.Delete(copies...)
	}
	return nil
}
