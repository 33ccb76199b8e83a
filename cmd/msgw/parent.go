package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
)

func dnsRecordsCommand() *cobra.Command {
	c := &cobra.Command{Use: "records", Short: "Show what to put into the parent zone", Args: cobra.NoArgs,
		Long: `Show what to put into the parent zone, as lines of a zone file: the name servers, their
addresses, and the DS record if the zone is signed and it is time for it. Lines that begin
with a semicolon say what else is to be known.`}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		r, err := client(*dir).ParentRecords(c.Context())
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if *asJSON {
			return printJSON(out, r)
		}
		var rows [][]string
		for _, x := range r.Records {
			rows = append(rows, []string{x.Name, strconv.Itoa(int(x.TTL)), "IN", x.Type, x.Data})
		}
		if err := table(out, rows); err != nil {
			return err
		}
		for _, n := range r.Notes {
			fmt.Fprintln(out, ";", n)
		}
		return nil
	}
	return c
}

func dnsCheckCommand() *cobra.Command {
	c := &cobra.Command{Use: "check", Short: "Compare the parent zone with what it has to hold, from each node", Args: cobra.NoArgs,
		Long: `Compare the parent zone with what 'msgw dns records' shows. Each node finds the servers of the
parent through its resolver and asks each of them. Before the zone is delegated, the command
warns of records in the parent zone that nobody will see any more once it is.

Exit code 1 if anything differs, or a node could not look.`}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		r, err := client(*dir).CheckParent(c.Context())
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if *asJSON {
			err = printJSON(out, r)
		} else {
			printParent(out, r)
		}
		if err == nil && !r.OK {
			err = exitCode(exitFailed)
		}
		return err
	}
	return c
}

func printParent(w io.Writer, r admin.ParentCheck) {
	for _, v := range r.Nodes {
		switch {
		case v.Error != "":
			fmt.Fprintf(w, "%s: cannot look at the parent zone: %s\n", v.Node, v.Error)
		case len(v.Differences) == 0:
			fmt.Fprintf(w, "%s: %s has what it has to hold, at all of its %d servers\n", v.Node, v.Parent, len(v.Servers))
		default:
			fmt.Fprintf(w, "%s: %s differs:\n  %s\n", v.Node, v.Parent, strings.Join(v.Differences, "\n  "))
		}
		for _, h := range v.Hidden {
			fmt.Fprintf(w, "  warning: the delegation will hide %s\n", h)
		}
	}
	if !r.OK {
		fmt.Fprintln(w, "`msgw dns records` shows what the parent zone has to hold")
	}
}
