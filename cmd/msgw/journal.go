package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
	"msgw/internal/node"
)

func journalCommand() *cobra.Command {
	c := &cobra.Command{Use: "journal", Short: "Look into what this site holds", GroupID: "operate",
		Long: `Look into what this site holds: messages that it took and that wait, and copies of the
other site's. Messages are sealed; only export --open shows one, and needs the mailbox's
password. If the node does not run, its state directory is read.`}
	c.AddCommand(journalListCommand("list", "List the messages held here", false),
		journalListCommand("single-copy", "List the messages that the other site is not known to hold", true),
		journalShowCommand(), journalReleaseCommand(), journalVerifyCommand(), journalExportCommand())
	return c
}

// withJournals calls f with the journals of the node at dir, which may run or not.
func withJournals(ctx context.Context, dir string, f func(admin.Journals) error) (err error) {
	cl := client(dir)
	_, err = cl.Copies(ctx) // whether it runs
	var ae *admin.Error
	if !errors.As(err, &ae) || ae.Status != admin.NotRunning {
		return f(cl)
	}
	j, done, err := node.OpenJournals(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	return f(j)
}

func journalListCommand(name, short string, single bool) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	dir, asJSON := addDir(c), addJSON(c)
	mailbox := c.Flags().String("mailbox", "", "only those of this mailbox")
	c.RunE = func(c *cobra.Command, _ []string) error {
		out := c.OutOrStdout()
		const form = "%-36s  %-19s  %10s  %-6s  %-36s  %s\n"
		if !*asJSON {
			fmt.Fprintf(out, form, "ID", "RECEIVED", "SIZE", "WHERE", "MAILBOX", "DAMAGE")
		}
		if single {
			defer func() {
				if s, err := client(*dir).Status(c.Context()); err == nil && s.Copies != nil && !s.Copies.Compared && s.Copies.State != "ALONE" {
					fmt.Fprintln(c.ErrOrStderr(), "there may be more: the sites have not compared what they hold since the link between them broke, or this node started")
				}
			}()
		}
		return withJournals(c.Context(), *dir, func(j admin.Journals) error {
			return j.Messages(c.Context(), admin.Query{Mailbox: *mailbox, Single: single}, func(m admin.Message) error {
				if *asJSON {
					return printJSON(out, m)
				}
				_, err := fmt.Fprintf(out, form, m.ID, m.Received.Local().Format(time.DateTime), size(m.Octets), where(m), m.Mailbox, damageText(m))
				return err
			})
		})
	}
	return c
}

func where(m admin.Message) string {
	if m.Copy {
		return "copy"
	}
	return "own"
}

func journalShowCommand() *cobra.Command {
	c := &cobra.Command{Use: "show ID", Short: "Show what is known of a message without opening it", Args: cobra.ExactArgs(1)}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return withJournals(c.Context(), *dir, func(j admin.Journals) error {
			m, err := j.Message(c.Context(), args[0])
			if err != nil {
				return err
			}
			if *asJSON {
				return printJSON(c.OutOrStdout(), m)
			}
			copies := "not known: the sites have not compared what they hold"
			switch {
			case m.Copy:
				copies = "this is the copy of a message that the other site owns"
			case m.Single:
				copies = "1: the other site is not known to hold it"
			case m.SingleKnown:
				copies = "2"
			}
			rows := [][]string{{"id", m.ID}, {"mailbox", m.Mailbox}, {"received", m.Received.Local().Format(time.DateTime)},
				{"size", fmt.Sprintf("%d octets, %d sealed", m.Octets, m.Sealed)}, {"journal report", yesNo(m.Report)}, {"copies", copies},
				{"key", m.Key}, {"sha256", m.SHA256 + " (sealed)"}}
			if m.Damage != "" {
				rows = append(rows, []string{"damage", m.Damage})
			}
			if !m.Quarantined.IsZero() {
				rows = append(rows, []string{"quarantined", "since " + m.Quarantined.Local().Format(time.DateTime) + ": " + m.QuarantinedWhy})
			}
			return table(c.OutOrStdout(), rows)
		})
	}
	return c
}

// damageText says whether a message is whole.
func damageText(m admin.Message) string {
	if m.Quarantined.IsZero() {
		return m.Damage
	}
	return "quarantined: " + m.QuarantinedWhy
}

func journalReleaseCommand() *cobra.Command {
	c := &cobra.Command{Use: "release ID", Short: "List a quarantined message again", Args: cobra.ExactArgs(1),
		Long: `List a quarantined message again. A message that could not be read in three sessions of
the archive, and that the other site's copy did not mend, is kept and not listed any
more, so that the archive gets past it. One that was damaged is released by itself once
it can be read again.`}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := client(*dir).Release(c.Context(), args[0]); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is listed again\n", args[0])
		return nil
	}
	return c
}

func journalVerifyCommand() *cobra.Command {
	c := &cobra.Command{Use: "verify", Short: "Check every message held here, without a key", Args: cobra.NoArgs,
		Long: `Check the hash and the framing of every message held here, without a key. What is
damaged is listed, and repaired from the other site's copy if the node runs and the sites
are linked. Exit code 1 if anything is damaged.`}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		return withJournals(c.Context(), *dir, func(j admin.Journals) error {
			out := c.OutOrStdout()
			v, err := j.Verify(c.Context(), func(m admin.Message) error {
				if *asJSON {
					return printJSON(out, m)
				}
				name := "message " + m.ID
				if m.ID == "" {
					name = "a place that belongs to no known message"
				}
				_, err := fmt.Fprintf(out, "damaged: %s (%s): %s\n", name, where(m), m.Damage)
				return err
			})
			if err != nil {
				return err
			}
			if *asJSON {
				if err := printJSON(out, v); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(out, "%d messages, %s, checked in %v: %d damaged\n", v.Messages, size(v.Octets), v.Took.Round(time.Millisecond), v.Damaged)
			}
			if v.Damaged > 0 {
				return exitCode(exitFailed)
			}
			return nil
		})
	}
	return c
}

func journalExportCommand() *cobra.Command {
	c := &cobra.Command{Use: "export [ID]...", Short: "Copy messages into files, sealed or opened",
		Long: `Copy messages into files of mode 0600, named by their ids. They are sealed: .age files that the
program age opens with the mailbox's key. With --open the mailbox's password is asked for, and the files
(.eml) hold the messages as the archive would get them. A single message without --to goes
to standard output. Nothing is deleted here. A file that exists is not overwritten.`,
		Example: "  msgw journal export --mailbox mbx-2a20342e96294505a35eb5c8364eb67c --to /root/mail --open"}
	dir := addDir(c)
	mailbox := c.Flags().String("mailbox", "", "export all of this mailbox")
	to := c.Flags().String("to", "", "directory for the files")
	open := c.Flags().Bool("open", false, "ask for the mailbox's password and write what the archive would get")
	c.RunE = func(c *cobra.Command, args []string) error {
		switch {
		case (len(args) == 0) == (*mailbox == ""):
			return usageError{errors.New("expected message ids, or --mailbox; `msgw journal list` shows both")}
		case *to == "" && len(args) != 1:
			return usageError{errors.New("expected --to for more than one message")}
		}
		return withJournals(c.Context(), *dir, func(j admin.Journals) error {
			ids := args
			if *mailbox != "" {
				if err := j.Messages(c.Context(), admin.Query{Mailbox: *mailbox}, func(m admin.Message) error {
					ids = append(ids, m.ID)
					return nil
				}); err != nil {
					return err
				}
			}
			read, suffix := j.Sealed, ".age"
			if *open {
				password, err := newAsker(c).password("password of the mailbox: ")
				if err != nil {
					return err
				}
				suffix = ".eml"
				read = func(ctx context.Context, id string) (io.ReadCloser, error) { return j.Plain(ctx, id, password) }
			}
			if *to == "" {
				return exportOne(c.Context(), read, ids[0], func(r io.Reader) error {
					_, err := io.Copy(c.OutOrStdout(), r)
					return err
				})
			}
			if fi, err := os.Stat(*to); err != nil || !fi.IsDir() {
				return &node.OperatorError{Err: fmt.Errorf("to: %q, expected an existing directory", *to)}
			}
			failed := 0
			for _, id := range ids {
				err := exportOne(c.Context(), read, id, func(r io.Reader) error { return writeNew(filepath.Join(*to, id+suffix), r) })
				if len(ids) == 1 {
					return err
				}
				if err != nil {
					failed++
					fmt.Fprintln(c.ErrOrStderr(), "msgw:", err)
				}
			}
			fmt.Fprintf(c.ErrOrStderr(), "%d of %d messages written to %s\n", len(ids)-failed, len(ids), *to)
			if failed > 0 {
				return exitCode(exitFailed)
			}
			return nil
		})
	}
	return c
}

func exportOne(ctx context.Context, read func(context.Context, string) (io.ReadCloser, error), id string, write func(io.Reader) error) error {
	r, err := read(ctx, id)
	if err == nil {
		err = write(r)
		r.Close()
	}
	if err != nil {
		return fmt.Errorf("message %s: %w", id, err)
	}
	return nil
}

// writeNew writes a file that does not exist yet; what is not whole is removed.
func writeNew(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &node.OperatorError{Err: err, Hint: "name an existing directory that does not hold the files yet"}
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}
