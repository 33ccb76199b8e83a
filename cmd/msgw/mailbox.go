package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"msgw/internal/admin"
)

func mailboxCommand() *cobra.Command {
	c := &cobra.Command{Use: "mailbox", Short: "Make, show and change mailboxes", GroupID: "operate"}
	c.AddCommand(mailboxCreateCommand(), mailboxListCommand(), mailboxShowCommand(), mailboxPasswdCommand(),
		mailboxStatusCommand("suspend", "suspended", "Take no more mail (4xx); what waits can still be fetched"),
		mailboxStatusCommand("activate", "active", "Take mail again"), mailboxSetCommand(), mailboxPresetsCommand(), mailboxPolicyCommand(), mailboxDeleteCommand())
	return c
}

func mailboxCreateCommand() *cobra.Command {
	c := &cobra.Command{Use: "create", Short: "Make a mailbox and show its password once", Args: cobra.NoArgs,
		Long: `Make a mailbox. Its address goes into the journal rule, its id and password into the
archive's profile, one profile per site. The password is shown once: what waits in the
mailbox cannot be read without it, by anyone.

The command returns when every reachable site takes mail for the mailbox.`,
		Example: "  msgw mailbox create --description 'Example Ltd'\n  msgw mailbox create --id mbx-2a20342e96294505a35eb5c8364eb67c"}
	dir, asJSON := addDir(c), addJSON(c)
	var r admin.CreateMailbox
	c.Flags().StringVar(&r.ID, "id", "", "take over this address instead of making a new one")
	c.Flags().StringVar(&r.Description, "description", "", "a note, such as the customer's name")
	choose := c.Flags().Bool("choose-password", false, "ask for a password instead of making one")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *choose {
			var err error
			if r.Password, err = newAsker(c).newPassword(); err != nil {
				return err
			}
		}
		cr, err := client(*dir).CreateMailbox(c.Context(), r)
		if err != nil {
			return err
		}
		return printCredentials(c, cr, *asJSON)
	}
	return c
}

func printCredentials(c *cobra.Command, cr admin.Credentials, asJSON bool) error {
	out := c.OutOrStdout()
	if asJSON {
		return printJSON(out, cr)
	}
	rows := [][]string{{"mailbox", cr.ID}, {"address", cr.Address}}
	if cr.Password != "" {
		rows = append(rows, []string{"password", cr.Password})
	}
	if err := table(out, rows); err != nil {
		return err
	}
	if cr.Password != "" {
		fmt.Fprintln(out, "\nKeep the password now. It is shown this once, and mail that waits cannot be read without it.")
	}
	printChange(out, cr.Change)
	return nil
}

func mailboxListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the mailboxes and what waits in them", Args: cobra.NoArgs}
	dir, asJSON := addDir(c), addJSON(c)
	all := c.Flags().Bool("all", false, "show deleted ones that are still kept")
	c.RunE = func(c *cobra.Command, _ []string) error {
		ms, err := client(*dir).Mailboxes(c.Context())
		if err != nil {
			return err
		}
		var shown []admin.Mailbox
		for _, m := range ms {
			if *all || m.Status != "retired" || mayHold(m) {
				shown = append(shown, m)
			}
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), append([]admin.Mailbox{}, shown...))
		}
		rows := [][]string{{"MAILBOX", "STATUS", "WAITING", "DESCRIPTION"}}
		for _, m := range shown {
			rows = append(rows, []string{m.ID, statusText(m), waitingText(m), m.Description})
		}
		return table(c.OutOrStdout(), rows)
	}
	return c
}

// waiting counts what can be fetched, or could once its site is back.
func waiting(m admin.Mailbox) (n int) {
	away := false
	for _, s := range m.Sites {
		away = away || s.Error != ""
	}
	for _, s := range m.Sites {
		n += s.Messages
		if away && !s.Adopted {
			n += s.Copies // of the site that is away
		}
	}
	return n
}

// mayHold returns whether there is mail for a mailbox at any site, as far as is known.
func mayHold(m admin.Mailbox) bool {
	for _, s := range m.Sites {
		if s.Error != "" {
			return true
		}
	}
	return waiting(m) > 0
}

// statusText says what a mailbox does; a deleted one may still have mail.
func statusText(m admin.Mailbox) string {
	if n := waiting(m); m.Status == "retired" && n > 0 {
		return fmt.Sprintf("retired, %d waiting", n)
	}
	return m.Status
}

func waitingText(m admin.Mailbox) string {
	var parts []string
	for _, s := range m.Sites {
		if s.Error != "" {
			parts = append(parts, s.Site+": not known")
		} else {
			parts = append(parts, fmt.Sprintf("%s: %d", s.Site, s.Messages))
		}
	}
	return strings.Join(parts, ", ")
}

func mailboxShowCommand() *cobra.Command {
	c := &cobra.Command{Use: "show MAILBOX", Short: "Show one mailbox", Args: cobra.ExactArgs(1)}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		m, err := client(*dir).Mailbox(c.Context(), args[0])
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if *asJSON {
			return printJSON(out, m)
		}
		if err := table(out, [][]string{{"mailbox", m.ID}, {"address", m.Address}, {"status", statusText(m)}, {"policy", cmp.Or(m.Policy, "default")},
			{"description", m.Description}, {"created", m.Created.Local().Format("2006-01-02 15:04:05")}}); err != nil {
			return err
		}
		rows := [][]string{{"\nSITE", "WAITING", "SIZE", "OLDEST", "LOCKED", "COPIES"}}
		for _, s := range m.Sites {
			if s.Error != "" {
				rows = append(rows, []string{s.Site, "not known: " + s.Error})
				continue
			}
			rows = append(rows, []string{s.Site, fmt.Sprint(s.Messages), size(s.Octets), age(s.Oldest), fmt.Sprint(s.Locked), fmt.Sprint(s.Copies)})
		}
		if err := table(out, rows); err != nil {
			return err
		}
		rows = restrictionRows(m.Restrictions, m.Effective, false)
		rows[0][0] = "\n" + rows[0][0]
		if err := table(out, rows); err != nil {
			return err
		}
		rows = [][]string{{"\nKEY", "STATE", "CREATED"}}
		for _, k := range m.Keys {
			rows = append(rows, []string{k.ID, k.State, k.Created.Local().Format("2006-01-02 15:04:05")})
		}
		return table(out, rows)
	}
	return c
}

func mailboxPasswdCommand() *cobra.Command {
	c := &cobra.Command{Use: "passwd MAILBOX", Short: "Change a mailbox's password; no waiting message is touched", Args: cobra.ExactArgs(1),
		Long: `Change a mailbox's password. The old one is asked for; what waits stays readable.
Standard input that is not a terminal gives the old password on its first line and, if
there is one, the new on its second.

With --reset the old password is not needed: a new key is made, and what waits under
the old one becomes locked. How much that is, is shown and must be confirmed.`}
	dir, asJSON := addDir(c), addJSON(c)
	reset := c.Flags().Bool("reset", false, "make a new key without the old password")
	yes := c.Flags().Bool("yes", false, "with --reset: do not ask for confirmation")
	choose := c.Flags().Bool("choose-password", false, "ask for the new password instead of making one")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, ask := client(*dir), newAsker(c)
		m, err := cl.Mailbox(c.Context(), args[0])
		if err != nil {
			return err
		}
		var cr admin.Credentials
		if *reset {
			if err := confirmReset(ask, m, *yes); err != nil {
				return err
			}
			var r admin.ResetPassword
			if *choose {
				if r.New, err = ask.newPassword(); err != nil {
					return err
				}
			}
			cr, err = cl.ResetPassword(c.Context(), m.ID, r)
		} else {
			var r admin.ChangePassword
			if r.Old, err = ask.password("old password: "); err != nil {
				return err
			}
			if *choose {
				r.New, err = ask.newPassword()
			} else if !ask.terminal {
				r.New, err = ask.optionalLine()
			}
			if err != nil {
				return err
			}
			cr, err = cl.ChangePassword(c.Context(), m.ID, r)
		}
		if err != nil {
			return err
		}
		return printCredentials(c, cr, *asJSON)
	}
	return c
}

func confirmReset(ask *asker, m admin.Mailbox, yes bool) error {
	for _, s := range m.Sites {
		if s.Error != "" {
			fmt.Fprintf(ask.out, "%s: not reachable; what waits there becomes locked as well\n", s.Site)
		} else {
			fmt.Fprintf(ask.out, "%s: %d waiting messages become locked\n", s.Site, s.Messages-s.Locked)
		}
	}
	if yes {
		return nil
	}
	answer, err := ask.line("type the mailbox id to go on: ")
	if err != nil {
		return err
	}
	if answer != m.ID {
		return usageError{errors.New("not confirmed: nothing was changed")}
	}
	return nil
}

func mailboxStatusCommand(verb, status, short string) *cobra.Command {
	c := &cobra.Command{Use: verb + " MAILBOX", Short: short, Args: cobra.ExactArgs(1)}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		ch, err := client(*dir).SetMailboxStatus(c.Context(), args[0], status)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is %s\n", args[0], status)
		printChange(c.OutOrStdout(), ch)
		return nil
	}
	return c
}

func mailboxDeleteCommand() *cobra.Command {
	c := &cobra.Command{Use: "delete MAILBOX", Short: "Delete a mailbox that is suspended and empty everywhere", Args: cobra.ExactArgs(1),
		Long: `Delete a mailbox. It must be suspended, and every site must report that nothing waits in
it. Its keys are kept until every site has known of this for a day and has confirmed that
again.

With --cut-off a site that cannot be asked is left out. What it takes until it hears of
the deletion is listed as "retired, N waiting", and can be fetched with the password.`}
	dir := addDir(c)
	cutOff := c.Flags().String("cut-off", "", "delete although this `SITE` cannot be asked")
	c.RunE = func(c *cobra.Command, args []string) error {
		ch, err := client(*dir).DeleteMailbox(c.Context(), args[0], *cutOff)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is deleted\n", args[0])
		printChange(c.OutOrStdout(), ch)
		return nil
	}
	return c
}

// asker asks a person at a terminal, or reads lines from a pipe.
type asker struct {
	terminal bool
	fd       int
	in       *bufio.Reader
	out      io.Writer
}

func newAsker(c *cobra.Command) *asker {
	a := &asker{in: bufio.NewReader(io.LimitReader(c.InOrStdin(), 64<<10)), out: c.ErrOrStderr()}
	if f, ok := c.InOrStdin().(*os.File); ok {
		a.fd, a.terminal = int(f.Fd()), term.IsTerminal(int(f.Fd()))
	}
	return a
}

// line asks for a line that is shown.
func (a *asker) line(prompt string) (string, error) {
	fmt.Fprint(a.out, prompt)
	s, err := a.optionalLine()
	if err == nil && s == "" {
		err = usageError{errors.New("no answer on standard input")}
	}
	return s, err
}

func (a *asker) optionalLine() (string, error) {
	s, err := a.in.ReadString('\n')
	if err == io.EOF {
		err = nil
	}
	return strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r"), err
}

// password asks for a password, unseen at a terminal.
func (a *asker) password(prompt string) (string, error) {
	if !a.terminal {
		s, err := a.optionalLine()
		if err == nil && s == "" {
			err = usageError{errors.New("expected a password on standard input")}
		}
		return s, err
	}
	fmt.Fprint(a.out, prompt)
	b, err := term.ReadPassword(a.fd)
	fmt.Fprintln(a.out)
	return string(b), err
}

func (a *asker) newPassword() (string, error) {
	p, err := a.password("new password: ")
	if err != nil || !a.terminal {
		return p, err
	}
	again, err := a.password("again: ")
	if err == nil && again != p {
		err = usageError{errors.New("the two do not match: nothing was changed")}
	}
	return p, err
}
