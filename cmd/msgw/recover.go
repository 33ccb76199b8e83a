package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
)

func recoverCommand() *cobra.Command {
	c := &cobra.Command{Use: "recover [NODE...]", Short: "Go on alone when the other voters are lost", GroupID: "disaster", Args: cobra.ArbitraryArgs,
		Long: `Without a name, show what is known of the other nodes: whether anything of them answers,
and how far their configuration was. Nothing is changed.

With the names of all other nodes, break the glass: this node goes on without them in a
new epoch, and changes are possible again. Mail, DNS and hand-over are not interrupted. A
node that was given up and comes back rejoins by itself and hands over its mail.

A node that answers is not given up. If it lives and the line to it is cut for long, run
` + "`msgw yield`" + ` there and give its token here.`,
		Example: "  msgw recover\n  msgw recover msgw2"}
	dir, asJSON := addDir(c), addJSON(c)
	tokens := c.Flags().StringArray("yield", nil, "token that `msgw yield` printed at a node that lives")
	c.RunE = func(c *cobra.Command, args []string) error {
		out := c.OutOrStdout()
		if len(args) == 0 && len(*tokens) == 0 {
			e, err := client(*dir).Evidence(c.Context())
			if err != nil {
				return err
			}
			if *asJSON {
				return printJSON(out, e)
			}
			return printEvidence(out, e)
		}
		r, err := client(*dir).Recover(c.Context(), admin.Recover{Names: args, Tokens: *tokens})
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(out, r)
		}
		fmt.Fprintf(out, "this node goes on alone in epoch %d-%s; changes are possible again\n", r.Epoch, r.EpochID)
		if r.Missing > 0 {
			fmt.Fprintf(out, "at least %d changes that were made elsewhere are missing here\n", r.Missing)
		} else if r.MayMiss {
			fmt.Fprintln(out, "changes that the others made without this node are missing here")
		}
		fmt.Fprintln(out, "next: `msgw invite --replace NODE` for a new machine, or wait until the old one is back and rejoins")
		return nil
	}
	return c
}

func printEvidence(out io.Writer, e admin.Evidence) error {
	fmt.Fprintf(out, "this node is %s, epoch %d, at command %d\n", e.Node, e.Epoch, e.Applied)
	if e.Renounced != "" {
		fmt.Fprintf(out, "it votes no more until it has rejoined: %s\n", e.Renounced)
	}
	switch {
	case e.Quorum:
		fmt.Fprintln(out, "there is a quorum: changes can be made, and nothing is to be recovered")
	case e.Confirmed.IsZero():
		fmt.Fprintln(out, "there was no quorum since this node started")
	default:
		fmt.Fprintf(out, "there was a quorum last at %s\n", e.Confirmed.Local().Format(time.DateTime))
	}
	command, alive := "msgw recover", false
	for _, o := range e.Others {
		heard := "not heard since this node started"
		if !o.Heard.IsZero() {
			heard = "last heard at " + o.Heard.Local().Format(time.DateTime)
		}
		fmt.Fprintf(out, "\n%s (%s), %s, last known at log entry %d\n", o.Name, o.Role, heard, o.Index)
		fmt.Fprintf(out, "  peer port %s\n", o.Peer)
		if o.SMTP != "" {
			fmt.Fprintf(out, "  public SMTP %s\n  public DNS %s\n", o.SMTP, o.DNS)
		}
		for _, s := range o.Said {
			fmt.Fprintf(out, "  %s\n", s)
		}
		command += " " + o.Name
		alive = alive || o.Alive
	}
	fmt.Fprintln(out)
	switch {
	case e.Quorum:
	case len(e.Others) == 0:
		fmt.Fprintf(out, "it is the only node; `msgw recover %s` makes it vote again\n", e.Node)
	case alive:
		fmt.Fprintln(out, "something of it answers: it lives. Mend the line, or run `msgw yield` there and `msgw recover --yield TOKEN` here")
	default:
		if e.Missing > 0 {
			fmt.Fprintf(out, "at least %d changes that were made there are not here\n", e.Missing)
		} else if len(e.Others) > 1 {
			fmt.Fprintln(out, "the others may have made changes since the last quorum that are not here")
		}
		fmt.Fprintf(out, "if it is certain that it is switched off or destroyed: `%s`\n", command)
	}
	return nil
}

func yieldCommand() *cobra.Command {
	c := &cobra.Command{Use: "yield", Short: "Give this node's vote up, so that the other one can go on alone", GroupID: "disaster", Args: cobra.NoArgs,
		Long: `Give this node's vote up, for good, and print a token that proves it. Mail, DNS and
hand-over go on here; the configuration cannot be changed here any more. At the other node
` + "`msgw recover --yield TOKEN`" + ` then goes on alone, and once the line is mended this node
rejoins by itself.`}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		y, err := client(*dir).Yield(c.Context())
		if err != nil {
			return err
		}
		fmt.Fprintln(c.ErrOrStderr(), "this node votes no more until it has rejoined; at the other one: msgw recover --yield TOKEN")
		fmt.Fprintln(c.OutOrStdout(), y.Token)
		return nil
	}
	return c
}

func rejoinCommand() *cobra.Command {
	c := &cobra.Command{Use: "rejoin [NODE]", Short: "Give this node's configuration up for that of another lineage", GroupID: "disaster", Args: cobra.MaximumNArgs(1),
		Long: `After both sites went on alone there are two configurations. Without a name, show the
nodes of another lineage, and what this node has changed that they have not.

With a name, take over that node's configuration. This node's changes are listed, to be
made again by hand. Its mail, and the mailboxes and keys that its mail needs, stay.`}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		out := c.OutOrStdout()
		if len(args) == 0 {
			forks, err := client(*dir).Forks(c.Context())
			if err != nil {
				return err
			}
			if *asJSON {
				return printJSON(out, forks)
			}
			if len(forks) == 0 {
				fmt.Fprintln(out, "no node in reach is of another lineage")
			}
			for _, f := range forks {
				fmt.Fprintf(out, "%s is of epoch %d-%s; `msgw rejoin %s` gives up here:\n", f.Node, f.Epoch, f.EpochID, f.Node)
				printLost(out, f.Lost)
			}
			return nil
		}
		r, err := client(*dir).Rejoin(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(out, r)
		}
		fmt.Fprintf(out, "this node has the configuration of %s now, epoch %d-%s; it gave up:\n", args[0], r.Epoch, r.EpochID)
		printLost(out, r.Lost)
		if r.File != "" {
			fmt.Fprintf(out, "the list is kept in %s in the state directory\n", r.File)
		}
		return nil
	}
	return c
}

func printLost(out io.Writer, lost []string) {
	if len(lost) == 0 {
		fmt.Fprintln(out, "- nothing")
	}
	for _, l := range lost {
		fmt.Fprintln(out, "-", l)
	}
}

func nodeRemoveCommand() *cobra.Command {
	c := &cobra.Command{Use: "remove NODE", Short: "Take a node out of the appliance for good", Args: cobra.ExactArgs(1),
		Long: `Take a node out of the appliance for good. Run it at a node that stays. A site is drained;
then this waits until all of its messages have their copy and the archive has fetched them;
then the site is removed. It can be interrupted and run again.

With --adopt it does not wait for the archive: what waits there is handed over here. With
--lost the node need not answer: it is given up, and what its site had is handed over here
from the copies.`}
	dir := addDir(c)
	r := admin.RemoveNode{}
	c.Flags().BoolVar(&r.Adopt, "adopt", false, "hand over here what waits at the site")
	c.Flags().BoolVar(&r.Lost, "lost", false, "the node is lost for good")
	limit := c.Flags().Duration("for", time.Hour, "how long to wait")
	c.RunE = func(c *cobra.Command, args []string) error {
		out := c.OutOrStdout()
		r.Name = args[0]
		said := ""
		for end := time.Now().Add(*limit); ; {
			p, err := client(*dir).RemoveNode(c.Context(), r)
			if err != nil {
				return err
			}
			if p.Done {
				fmt.Fprintf(out, "%s is removed\n", r.Name)
				if p.Adopted > 0 {
					fmt.Fprintf(out, "%d messages of it are handed over here\n", p.Adopted)
				}
				return nil
			}
			if p.Waiting != said {
				said = p.Waiting
				fmt.Fprintln(out, said)
			}
			if time.Now().After(end) {
				return fmt.Errorf("not removed within %v; %s stays drained: run it again, or `msgw node undrain %s`", *limit, r.Name, r.Name)
			}
			select {
			case <-time.After(time.Second):
			case <-c.Context().Done():
				return c.Context().Err()
			}
		}
	}
	return c
}
