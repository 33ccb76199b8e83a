package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
	"msgw/internal/certs"
)

func certCommand() *cobra.Command {
	c := &cobra.Command{Use: "cert", Short: "Certificates that mail programs are shown", GroupID: "operate", Args: cobra.NoArgs}
	c.AddCommand(certListCommand(), certRenewCommand(), certRolloverCommand(), certCheckCommand())
	return c
}

func certListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "Show which certificates are held, served and ordered", Args: cobra.NoArgs,
		Long: `Show which certificates this node holds, which of them it serves, when they end, when they
are ordered next, and why the last order failed, if it did.`}
	dir, asJSON := addDir(c), addJSON(c)
	all := c.Flags().Bool("all", false, "also those of the other sites")
	c.RunE = func(c *cobra.Command, _ []string) error {
		sites, err := client(*dir).Certificates(c.Context(), *all)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), sites)
		}
		for i, s := range sites {
			if i > 0 {
				fmt.Fprintln(c.OutOrStdout())
			}
			if err := printCertificates(c.OutOrStdout(), s); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

func certRenewCommand() *cobra.Command {
	c := &cobra.Command{Use: "renew [NAME]", Short: "Order certificates of this node now", Args: cobra.MaximumNArgs(1),
		Long: `Order the certificates of this node now, whether they are due or not, or only the one for NAME,
and wait until they are served. Nothing has to be done for them to be renewed: this is for a
certificate that must not be used any more. CAs count orders: five for the same name within a
week are what Let's Encrypt allows.`}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		r := admin.RenewCertificates{Name: strings.Join(args, "")}
		s, err := client(*dir).RenewCertificates(c.Context(), r)
		if err != nil {
			return err
		}
		return showCertificates(c.OutOrStdout(), *asJSON, s)
	}
	return c
}

func certRolloverCommand() *cobra.Command {
	c := &cobra.Command{Use: "rollover", Short: "Change the key of this node's certificates", Args: cobra.NoArgs,
		Long: `Make a new key for this node's certificates. It is announced first: where the zone has TLSA
records, they name both keys. Once every site answers them, and resolvers have forgotten those
without the new key, a certificate for it is ordered and served, and the old key is deleted.
All of that happens by itself; 'msgw cert list' shows where it stands.`}
	dir, asJSON := addDir(c), addJSON(c)
	var r admin.RollOverKey
	c.Flags().StringVar(&r.Type, "type", "", "kind of the key: "+strings.Join(certs.KeyTypes, ", ")+" (default "+certs.KeyTypes[0]+")")
	c.Flags().BoolVar(&r.Abandon, "abandon", false, "forget the key that is announced")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.Abandon && r.Type != "" {
			return usageError{errors.New("--abandon makes no key, so --type says nothing")}
		}
		s, err := client(*dir).RollOverKey(c.Context(), r)
		if err != nil {
			return err
		}
		return showCertificates(c.OutOrStdout(), *asJSON, s)
	}
	return c
}

func certCheckCommand() *cobra.Command {
	c := &cobra.Command{Use: "check", Short: "Look at everything that this node's certificates need", Args: cobra.NoArgs,
		Long: `Look at everything that this node's certificates need: whether the directory answers, whether
what this node answers to a challenge is found from outside, whether CAA records allow the CA,
whether what is served is trusted and for the right name, whether the TLSA records of every
site name its keys, and whether others can read them.

Exit code 1 if anything is not as it should be.`}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		r, err := client(*dir).CheckCertificates(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(c.OutOrStdout(), r)
		} else {
			for _, f := range r.Findings {
				state := "ok"
				if !f.OK {
					state = "NOT OK"
				}
				fmt.Fprintf(c.OutOrStdout(), "%-6s  %s: %s\n", state, f.What, f.Detail)
			}
		}
		if err == nil && !r.OK {
			err = exitCode(exitFailed)
		}
		return err
	}
	return c
}

func showCertificates(w io.Writer, asJSON bool, s admin.Certificates) error {
	if asJSON {
		return printJSON(w, s)
	}
	return printCertificates(w, s)
}

func printCertificates(w io.Writer, s admin.Certificates) error {
	fmt.Fprintln(w, s.Node)
	if s.Error != "" {
		fmt.Fprintln(w, "not known:", s.Error)
		return nil
	}
	if s.Directory != "" {
		fmt.Fprintf(w, "ordered from %s by %s\n", s.Directory, s.Challenge)
	}
	rows := [][]string{{"NAMES", "SOURCE", "ISSUER", "ENDS", "SERVED", "NEXT ORDER", "LAST ORDER"}}
	for _, c := range s.Certs {
		served := "no"
		if c.Served {
			served = "yes"
		}
		rows = append(rows, []string{cmp.Or(strings.Join(c.Names, ","), "-"), c.Source, cmp.Or(c.Issuer, "-"), when(c.NotAfter), served, when(c.Next), when(c.Last)})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	for _, c := range s.Certs {
		if text := cmp.Or(c.Trouble, c.Error); text != "" {
			fmt.Fprintf(w, "%s (%s): %s\n", strings.Join(c.Names, ", "), c.Source, text)
		}
	}
	if r := s.Rollover; r != nil {
		fmt.Fprintf(w, "rollover: the new key %s is announced\n", r.Key)
		if r.Waiting != "" {
			fmt.Fprintln(w, "it waits:", r.Waiting)
		}
	}
	return nil
}

// when is a time in a table.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}
