package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
)

func dnsCommand() *cobra.Command {
	c := &cobra.Command{Use: "dns", Short: "Show what the DNS would answer now, and why", GroupID: "operate", Args: cobra.NoArgs,
		Long: `Show what this node's DNS would answer now, and why. With --explain, also what the other
sites would answer, the row of the decision table that each verdict comes from, and the
observations behind it. The table is in docs/steering.md.`}
	c.AddCommand(dnsSetCommand(), dnsRecordCommand(), dnsExchangeCommand(), dnsRecordsCommand(), dnsCheckCommand(), dnsSignCommand(), dnsRolloverCommand())
	dir, asJSON := addDir(c), addJSON(c)
	explain := c.Flags().Bool("explain", false, "with the rows and observations behind it, and what the other sites would answer")
	c.RunE = func(c *cobra.Command, _ []string) error {
		d, err := client(*dir).DNS(c.Context(), *explain)
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if *asJSON {
			return printJSON(out, d)
		}
		if err := printDNS(out, d, *explain); err != nil {
			return err
		}
		for _, o := range d.Others {
			fmt.Fprintf(out, "\n%s\n", o.Node)
			if o.Error != "" {
				fmt.Fprintln(out, "not known:", o.Error)
			} else if err := printDNS(out, o, true); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// printDNS prints what one node answers; explain: with what is behind it.
func printDNS(out io.Writer, d admin.DNS, explain bool) error {
	fmt.Fprintf(out, "zone %s, serial %d, mode %s\n", d.Zone, d.Serial, d.Mode)
	if !d.Fresh {
		fmt.Fprintln(out, "health is not known: the configured weights are answered")
	}
	if err := table(out, append([][]string{{"\nMX", "STATE", "CLASS", "WEIGHT", "FIRST IN", "WHY"}}, mxRows(d.MX)...)); err != nil {
		return err
	}
	for _, m := range d.MX {
		fmt.Fprintf(out, "\n%s\n", m.Host)
		if explain {
			if m.Row > 0 {
				fmt.Fprintf(out, "  row %d, %s since %s\n", m.Row, m.State, m.Since.Local().Format(time.DateTime))
			}
			fmt.Fprintf(out, "  %s: %s\n", m.Class, m.Why)
		}
		for _, o := range m.Observations {
			fmt.Fprintln(out, "  "+o)
		}
	}
	fmt.Fprintln(out, "\none drawn answer")
	for _, s := range d.Sample {
		fmt.Fprintln(out, "  "+s)
	}
	for _, f := range d.Faults {
		fmt.Fprintln(out, "left out:", f)
	}
	printNotes(out, d.Notes)
	return nil
}
