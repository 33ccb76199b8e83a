package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func dnsCommand() *cobra.Command {
	c := &cobra.Command{Use: "dns", Short: "Show what the DNS would answer now, and why", GroupID: "operate", Args: cobra.NoArgs}
	c.AddCommand(dnsSetCommand(), dnsRecordCommand(), dnsExchangeCommand())
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		d, err := client(*dir).DNS(c.Context())
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if *asJSON {
			return printJSON(out, d)
		}
		fmt.Fprintf(out, "zone %s, serial %d, mode %s\n", d.Zone, d.Serial, d.Mode)
		if !d.Fresh {
			fmt.Fprintln(out, "health is not known: the configured weights are answered")
		}
		if err := table(out, append([][]string{{"\nMX", "STATE", "CLASS", "WEIGHT", "FIRST IN", "WHY"}}, mxRows(d.MX)...)); err != nil {
			return err
		}
		for _, m := range d.MX {
			fmt.Fprintf(out, "\n%s\n", m.Host)
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
	return c
}
