package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"msgw/internal/admin"
	"msgw/smtpnode"
)

// defaults is what `mailbox set` names instead of a mailbox: what holds for all that have
// nothing of their own.
const defaults = "default"

func mailboxSetCommand() *cobra.Command {
	c := &cobra.Command{Use: "set MAILBOX|default", Short: "Say from whom a mailbox takes mail, and how much", Args: cobra.ExactArgs(1),
		Long: `Say from whom a mailbox takes mail, and how much of it in one message. What is not named
stays as it is; without any option the settings are shown. The word default in the place
of a mailbox stands for what holds where a mailbox has nothing of its own, and as a value
it gives a mailbox's setting back to that.

A sender that is not allowed, or comes without the TLS or the certificate that is asked
for, is told to try again later (450): it gives up after a day with Exchange Online, and
'msgw status' and the log say what was refused. A message that is too large is refused for
good (552).`,
		Example: `  msgw mailbox set default --require-tls yes
  msgw mailbox set mbx-2a20342e96294505a35eb5c8364eb67c --allow microsoft365,192.0.2.0/24
  msgw mailbox set mbx-2a20342e96294505a35eb5c8364eb67c --allow default --max-size 50MB`}
	dir, asJSON := addDir(c), addJSON(c)
	f := c.Flags()
	f.String("allow", "", "addresses, networks, and the presets "+strings.Join(smtpnode.Presets(), " and ")+", with commas between; any; default")
	f.String("require-tls", "", "yes, no or default")
	f.String("client-name", "", "host names, with commas between, for one of which the client's certificate must be; any; default")
	f.String("client-ca", "", "a `file` with the CAs, in PEM form, that issue such certificates; system; default")
	f.String("max-size", "", "octets of a message, as in 150MB, or default")
	f.String("max-recipients", "", "addresses in one message that may name the mailbox; of default: recipients of a message; or default")
	f.String("ambiguous-dots", "", "accept or reject DATA that other servers may take for two messages; default")
	f.String("description", "", "a note, such as the customer's name")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, of := client(*dir), args[0]
		var now admin.Restrictions
		var m admin.Mailbox
		var err error
		if of == defaults {
			now, err = cl.Restrictions(c.Context())
		} else if m, err = cl.Mailbox(c.Context(), of); err == nil {
			now = m.Restrictions
		}
		if err != nil {
			return err
		}
		changed, err := restrict(f, &now)
		if err != nil {
			return usageError{err}
		}
		set := admin.SetMailbox{Restrictions: now}
		if f.Changed("description") {
			if of == defaults {
				return usageError{errors.New("description: a mailbox has one, expected a mailbox in the place of default")}
			}
			text, _ := f.GetString("description")
			set.Description, changed = &text, true
		}
		if changed {
			var ch admin.Change
			if of == defaults {
				ch, err = cl.SetRestrictions(c.Context(), now)
			} else {
				ch, err = cl.SetMailbox(c.Context(), of, set)
			}
			if err != nil {
				return err
			}
			printChange(c.ErrOrStderr(), ch)
		}
		return printRestrictions(c, cl, of, *asJSON)
	}
	return c
}

// restrict puts what the options name into r.
func restrict(f *pflag.FlagSet, r *admin.Restrictions) (changed bool, err error) {
	f.Visit(func(flag *pflag.Flag) {
		v := flag.Value.String()
		unset := v == defaults
		if v == "" && flag.Name != "description" && flag.Name != "dir" {
			err = errors.Join(err, fmt.Errorf("%s: empty, expected a value or default", flag.Name))
			return
		}
		var e error
		switch flag.Name {
		case "allow":
			r.Allow = list(v)
		case "require-tls":
			r.RequireTLS, e = choice(v, "yes", "no")
		case "client-name":
			r.Clients = list(v)
		case "client-ca":
			r.ClientCA, e = clientCA(v)
		case "max-size":
			if r.MaxSize = 0; !unset {
				r.MaxSize, e = parseSize(v)
			}
		case "max-recipients":
			if r.MaxRecipients = 0; !unset {
				if r.MaxRecipients, e = strconv.Atoi(v); e != nil || r.MaxRecipients < 1 {
					e = fmt.Errorf("%q, expected a number from 1 on, or default", v)
				}
			}
		case "ambiguous-dots":
			r.Dots, e = choice(v, "accept", "reject")
		default:
			return
		}
		if changed = true; e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", flag.Name, e))
		}
	})
	return changed, err
}

// list takes a list apart; default is no list.
func list(v string) (out []string) {
	if v == defaults {
		return nil
	}
	for s := range strings.SplitSeq(v, ",") {
		out = append(out, strings.TrimSpace(s))
	}
	return out
}

// choice takes one of two words; default is neither.
func choice(v, a, b string) (string, error) {
	switch v {
	case a, b:
		return v, nil
	case defaults:
		return "", nil
	}
	return "", fmt.Errorf("%q, expected %s, %s or default", v, a, b)
}

// maxCAFile bounds what is read of a file with CAs.
const maxCAFile = 64 << 10

func clientCA(v string) (string, error) {
	switch v {
	case defaults:
		return "", nil
	case "system":
		return v, nil
	}
	file, err := os.Open(v)
	if err != nil {
		return "", err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxCAFile+1))
	if err == nil && len(b) > maxCAFile {
		err = fmt.Errorf("%s: more than %d octets", v, maxCAFile)
	}
	return string(b), err
}

// printRestrictions shows what holds, and of a mailbox what is its own.
func printRestrictions(c *cobra.Command, cl *admin.Client, of string, asJSON bool) error {
	common, err := cl.Restrictions(c.Context())
	if err != nil {
		return err
	}
	own, holds := common, common
	if of != defaults {
		m, err := cl.Mailbox(c.Context(), of)
		if err != nil {
			return err
		}
		own, holds = m.Restrictions, m.Effective
	}
	if asJSON {
		return printJSON(c.OutOrStdout(), struct {
			Own   admin.Restrictions `json:"restrictions"`
			Holds admin.Restrictions `json:"effective_restrictions"`
		}{own, holds})
	}
	return table(c.OutOrStdout(), restrictionRows(own, holds, of == defaults))
}

func restrictionRows(own, holds admin.Restrictions, common bool) [][]string {
	rows := [][]string{{"SETTING", "VALUE", "SET FOR"}}
	row := func(name, value string, isOwn, isSet bool) {
		from := "-"
		switch {
		case isOwn && common, isSet && !isOwn:
			from = "all"
		case isOwn:
			from = "this mailbox"
		}
		rows = append(rows, []string{name, value, from})
	}
	or := func(v, d string) string {
		if v == "" {
			return d
		}
		return v
	}
	ca := "system"
	if holds.ClientCA != "" && holds.ClientCA != "system" {
		ca = fmt.Sprintf("%d given", strings.Count(holds.ClientCA, "-----BEGIN CERTIFICATE-----"))
	}
	most, recipients := size(smtpnode.DefaultMaxSize), "not bounded"
	if common {
		recipients = strconv.Itoa(smtpnode.DefaultMaxRecipients)
	}
	if holds.MaxSize > 0 {
		most = size(holds.MaxSize)
	}
	if holds.MaxRecipients > 0 {
		recipients = strconv.Itoa(holds.MaxRecipients)
	}
	row("allow", or(strings.Join(holds.Allow, ","), "any"), own.Allow != nil, holds.Allow != nil)
	row("require-tls", or(holds.RequireTLS, "no"), own.RequireTLS != "", holds.RequireTLS != "")
	row("client-name", or(strings.Join(holds.Clients, ","), "any"), own.Clients != nil, holds.Clients != nil)
	row("client-ca", ca, own.ClientCA != "", holds.ClientCA != "")
	row("max-size", most, own.MaxSize > 0, holds.MaxSize > 0)
	row("max-recipients", recipients, own.MaxRecipients > 0, holds.MaxRecipients > 0)
	row("ambiguous-dots", or(holds.Dots, "accept"), own.Dots != "", holds.Dots != "")
	return rows
}

func mailboxPresetsCommand() *cobra.Command {
	c := &cobra.Command{Use: "presets", Short: "Show the networks that the names in allow lists stand for", Args: cobra.NoArgs,
		Long: "Show the networks that the names in allow lists stand for, as of " + smtpnode.PresetsAsOf + `. They are part of the
program. If a sender has a network that is missing, name it beside the preset.`}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, rows := map[string][]string{}, [][]string{{"PRESET", "NETWORK"}}
		for _, name := range smtpnode.Presets() {
			networks, _ := smtpnode.Preset(name)
			for _, n := range networks {
				all[name] = append(all[name], n.String())
				rows = append(rows, []string{name, n.String()})
			}
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), all)
		}
		return table(c.OutOrStdout(), rows)
	}
	return c
}
