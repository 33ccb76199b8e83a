package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"msgw/internal/admin"
	"msgw/internal/backup"
	"msgw/internal/node"
	"msgw/raftstore"
)

func backupCommand() *cobra.Command {
	c := &cobra.Command{Use: "backup", Short: "Write the configuration, and the mail that waits, into a file", GroupID: "operate", Args: cobra.NoArgs,
		Long: `Write the configuration, and with --journal the mail that waits at this site, into one
file, of a node that runs or not. Mailbox keys and messages stay as they are, sealed to
their passwords. The file has mode 0600 and is there only once it is whole.

With --recipient the file is encrypted to a recovery key, as age-keygen makes it, and
holds the key of the appliance's own CA. Without, it does not: whoever has the file then
has no key, and an appliance that is restored from it gets a new CA.

A damaged message is left out and named; the exit code is 1 then.`,
		Example: "  msgw backup --output /root/msgw.backup\n  msgw backup --journal --recipient \"$(cat recovery.pub)\" --output /mnt/msgw.backup"}
	dir := addDir(c)
	f := c.Flags()
	output := f.StringP("output", "o", "-", "file to write, which must not exist; - is standard output")
	f.StringArrayP("recipient", "r", nil, "encrypt to this recovery recipient, age1... or age1pq1...; may be given more than once")
	journal := f.Bool("journal", false, "take the mail that waits along, and the copies of the other site's")
	c.RunE = func(c *cobra.Command, _ []string) error {
		recipients, err := f.GetStringArray("recipient")
		if err != nil {
			return err
		}
		if _, err := backup.ParseRecipients(recipients); err != nil {
			return usageError{err}
		}
		r := admin.BackupRequest{Recipients: recipients, Journal: *journal}
		if *output == "" {
			return usageError{errors.New(`output "": expected a file, or - for standard output`)}
		}
		var sum admin.Backup
		write := func(w io.Writer) (err error) {
			sum, err = takeBackup(c.Context(), *dir, r, w)
			return err
		}
		if *output != "-" {
			err = writeWhole(*output, write)
		} else if out, ok := c.OutOrStdout().(*os.File); ok && term.IsTerminal(int(out.Fd())) {
			return usageError{errors.New("output: a backup does not go to a terminal; name a file with --output")}
		} else {
			err = write(c.OutOrStdout())
		}
		if err != nil {
			return err
		}
		to := *output + ": "
		if *output == "-" {
			to = ""
		}
		fmt.Fprintf(c.ErrOrStderr(), "%s%s\n", to, backupText(sum, recipients))
		if sum.Damaged > 0 {
			more := ""
			if sum.Damaged > len(sum.LeftOut) {
				more = ", and others"
			}
			fmt.Fprintf(c.ErrOrStderr(), "msgw: %d damaged messages are left out: %s%s\nhint: `msgw journal verify` says what is wrong with them; they may be whole at the other site\n",
				sum.Damaged, strings.Join(sum.LeftOut, " "), more)
			return exitCode(exitFailed)
		}
		return nil
	}
	return c
}

// takeBackup asks the node at dir for a backup, or reads its directory if it does not run.
func takeBackup(ctx context.Context, dir string, r admin.BackupRequest, w io.Writer) (admin.Backup, error) {
	sum, err := client(dir).Backup(ctx, r, w)
	var ae *admin.Error
	if errors.As(err, &ae) && ae.Status == admin.NotRunning {
		return node.BackupStopped(ctx, dir, version, r, w)
	}
	return sum, err
}

func backupText(b admin.Backup, recipients []string) string {
	text := fmt.Sprintf("%s of %s, revision %d, %d mailboxes, ", b.Node, b.Zone, b.Revision, b.Mailboxes)
	if b.Journal {
		text += fmt.Sprintf("%d messages and %d copies of the other site's, %s sealed", b.Own, b.Copies, size(b.Octets))
	} else {
		text += "without messages"
	}
	if b.Encrypted == 0 {
		return text + "; not encrypted, without the CA's key"
	}
	var to []string
	for _, r := range recipients {
		if len(r) > 70 {
			r = r[:20] + "..." // a hybrid one has some 2000 characters
		}
		to = append(to, r)
	}
	text += "; encrypted to " + strings.Join(to, " ")
	if b.CAKey {
		return text + ", with the CA's key"
	}
	return text + ", without the CA's key, which a witness cannot open"
}

func addIdentity(c *cobra.Command) *string {
	path := c.Flags().StringP("identity", "i", "", "file with the recovery key, AGE-SECRET-KEY-..., of an encrypted backup; - is standard input")
	c.MarkFlagFilename("identity")
	return path
}

func readIdentities(in io.Reader, path string) ([]backup.Identity, error) {
	switch path {
	case "":
		return nil, nil
	case "-":
	default:
		f, err := os.Open(path)
		if err != nil {
			return nil, &node.OperatorError{Err: fmt.Errorf("identity: %w", err)}
		}
		defer f.Close()
		in = f
	}
	ids, err := backup.ParseIdentities(in)
	if err != nil {
		return nil, &node.OperatorError{Err: err}
	}
	return ids, nil
}

// withBackup calls f with a backup's file and the identities that may open it.
func withBackup(c *cobra.Command, path, identity string, f func(file *os.File, ids []backup.Identity) error) error {
	ids, err := readIdentities(c.InOrStdin(), identity)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return &node.OperatorError{Err: err}
	}
	defer file.Close()
	if fi, err := file.Stat(); err != nil || !fi.Mode().IsRegular() {
		return &node.OperatorError{Err: errors.Join(fmt.Errorf("%s: not a regular file", path), err)}
	}
	err = f(file, ids)
	switch {
	case errors.Is(err, backup.ErrEncrypted):
		return &node.OperatorError{Err: fmt.Errorf("%s: %w", path, err), Hint: "name the file with the recovery key: --identity FILE"}
	case errors.Is(err, backup.ErrIdentity):
		return &node.OperatorError{Err: fmt.Errorf("%s: %w", path, err), Hint: "name the file with the recovery key that it was encrypted to"}
	case errors.Is(err, backup.ErrBroken):
		return fmt.Errorf("%s: %w", path, err)
	}
	return err
}

func verifyCommand() *cobra.Command {
	c := &cobra.Command{Use: "verify FILE", Short: "Check a backup from its first octet to its last", GroupID: "operate", Args: cobra.ExactArgs(1),
		Long: `Check a backup from its first octet to its last: that it is whole, every checksum, that the
configuration in it is coherent, and every sealed message against its facts. It needs no
mailbox's password, and no node. An encrypted backup needs the recovery key.

Exit code 1 if anything is wrong, and a line that names it.`}
	identity, asJSON := addIdentity(c), addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return withBackup(c, args[0], *identity, func(file *os.File, ids []backup.Identity) error {
			b, err := backup.Read(file, ids, nil)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if *asJSON {
				return printJSON(out, struct {
					backup.Head
					backup.Summary
					Encrypted bool `json:"encrypted"`
				}{b.Head, b.Summary, b.Encrypted})
			}
			rows := [][]string{
				{"backup of", fmt.Sprintf("%s of %s, made %s", b.Head.Node, b.Head.Zone, b.Head.Made.Local().Format(time.DateTime))},
				{"configuration", fmt.Sprintf("epoch %d, revision %d, %d mailboxes", b.Head.Epoch.Number, b.Head.Revision, b.Summary.Mailboxes)},
				{"nodes", nodesText(b.State.SortedNodes())},
				{"messages", messagesText(b)},
				{"encrypted", yesNo(b.Encrypted)},
				{"CA's key", yesNo(b.CAKey != nil)},
			}
			if b.State.Signing.Phase != raftstore.Unsigned {
				rows = append(rows, []string{"zone's keys", yesNo(b.State.Signing.Clear != nil)})
			}
			if err := table(out, rows); err != nil {
				return err
			}
			fmt.Fprintln(out, "whole: every checksum fits")
			return nil
		})
	}
	return c
}

func nodesText(nodes []raftstore.Node) string {
	var names []string
	for _, n := range nodes {
		names = append(names, fmt.Sprintf("%s (%s)", n.Name, n.Role))
	}
	return strings.Join(names, ", ")
}

func messagesText(b *backup.Contents) string {
	if !b.Head.Journal {
		return "not in it"
	}
	text := fmt.Sprintf("%d, and %d copies of the other site's, %s sealed", b.Summary.Own, b.Summary.Copies, size(b.Summary.Octets))
	if b.Summary.Orphans > 0 {
		text += fmt.Sprintf("; %d are sealed to keys that the configuration does not have: nobody can open them", b.Summary.Orphans)
	}
	return text
}

func restoreCommand() *cobra.Command {
	c := &cobra.Command{Use: "restore FILE", Short: "Make a new appliance of one node from a backup", GroupID: "node", Args: cobra.ExactArgs(1),
		Long: `Make a new appliance of one node from a backup, in the empty state directory that the
configuration file names: with its zone, mailboxes and settings, and the messages that are
in it. Name and addresses are those of the configuration file; they may be others than
before. The archive fetches with the passwords that it has.

It is for when every site is lost. While one is left, that one knows more than any backup.
The backup is checked to its end first, and nothing is left behind if anything is wrong.`,
		Example: "  msgw restore /mnt/msgw.backup --identity recovery.key"}
	path, identity := addConfig(c), addIdentity(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		return withBackup(c, args[0], *identity, func(file *os.File, ids []backup.Identity) error {
			r, err := node.Restore(c.Context(), cfg, file, ids)
			if err != nil {
				return err
			}
			printRestored(c.OutOrStdout(), cfg, r)
			fmt.Fprintf(c.OutOrStdout(), "run it: msgw serve --config %s\n", *path)
			return nil
		})
	}
	return c
}

// printRestored says what is as it was, and what is not.
func printRestored(w io.Writer, cfg *node.Config, r *node.Restored) {
	s, held := r.State, r.Backup
	fmt.Fprintf(w, "node %s made in %s from the backup of %s of %s\n", cfg.Name, cfg.State, held.Head.Node, held.Head.Made.Local().Format(time.DateTime))
	fmt.Fprintf(w, "zone %s, %d mailboxes, %d messages, epoch %d\n", s.Zone.Name, held.Summary.Mailboxes, held.Summary.Messages(), s.Epoch.Number)
	if !held.Head.Journal {
		fmt.Fprintln(w, "messages: the backup has none; mail that waited is not here")
	}
	if r.NewCA {
		text := "CA: a new one, as the backup does not hold the old one's key; programs that trusted what `msgw ca` printed need what it prints now"
		if s.ACME.Directory != "" {
			text += "; mail programs see no change once certificates have come from " + s.ACME.Directory
		}
		fmt.Fprintln(w, text)
	}
	if r.Unsigned {
		fmt.Fprintln(w, "DNSSEC: the zone is not signed any more, as the backup does not hold its keys; remove the DS from the parent zone now, or validating resolvers find nothing")
	} else if s.Signing.Phase != raftstore.Unsigned {
		fmt.Fprintln(w, "DNSSEC: signed with the keys of the backup; if the key was changed since, the DS in the parent zone is another one: msgw dns check")
	}
	if r.OldHost != "" {
		fmt.Fprintf(w, "host name: it was %s and is %s now, as the configuration file says; tell the archive and the parent zone\n", r.OldHost, s.Nodes[cfg.Name].Host)
	}
	if len(r.Others) > 0 {
		fmt.Fprintf(w, "not taken over: %s; if one of them still runs, stop it: it does not talk to this one. Let each join anew, with an empty state directory: msgw invite\n", nodesText(r.Others))
	}
	if r.Strict {
		fmt.Fprintln(w, "policy strict: such mail is refused (451) until a second site has joined, or until `msgw copies --policy available`")
	}
}
