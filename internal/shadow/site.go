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
func (s Site) List(mailbox string) (mail []Mail) {
	listed := map[journal.ID]bool{}
	list := func(from *journal.Journal, metas []journal.Meta) {
		for _, meta := range metas {
			if !listed[meta.ID] {
				listed[meta.ID] = true
				mail = append(mail, Mail{meta, from})
			}
		}
	}
	if s.Shipper.Listable() {
		list(s.Shipper.own, s.Shipper.own.List(mailbox))
	}
	list(s.Holder.held, s.Holder.List(mailbox))
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
