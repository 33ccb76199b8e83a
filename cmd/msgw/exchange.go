package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
	"msgw/raftstore"
)

func dnsExchangeCommand() *cobra.Command {
	c := &cobra.Command{Use: "exchange", Short: "Show and change mail exchangers that are no sites",
		Long: `Show and change mail exchangers that are no sites, such as the old gateway while senders
move over. They stand in the MX records with a weight, beside the sites, and each site
probes their port 25. What they take is not known here.`}
	c.AddCommand(dnsExchangeListCommand(), dnsExchangeAddCommand(), dnsExchangeWeightCommand(), dnsExchangeRemoveCommand())
	return c
}

func dnsExchangeListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List them", Args: cobra.NoArgs}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		z, err := client(*dir).Zone(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), z.Exchanges)
		}
		rows := [][]string{{"HOST", "WEIGHT", "ADDRESSES", "PROBED AT"}}
		for _, e := range z.Exchanges {
			where, port := "looked up", 25
			if len(e.Addresses) > 0 {
				where = strings.Join(e.Addresses, ",")
			}
			if e.Port != 0 {
				port = e.Port
			}
			rows = append(rows, []string{e.Host, fmt.Sprint(e.Weight), where, "port " + strconv.Itoa(port)})
		}
		return table(c.OutOrStdout(), rows)
	}
	return c
}

func dnsExchangeAddCommand() *cobra.Command {
	c := &cobra.Command{Use: "add HOST WEIGHT", Short: "Add one to the MX records", Args: cobra.ExactArgs(2),
		Example: `  msgw dns exchange add gateway.example.com 3
  msgw dns exchange add old.msgw.example.com 3 --address 192.0.2.7`}
	address := c.Flags().String("address", "", "its addresses, with commas between; needed if its name is inside the zone, which then has them too")
	port := c.Flags().Int("port", 25, "where its SMTP is probed; senders go to 25")
	return exchangeChange(c, func(z *admin.ZoneSettings, args []string) (err error) {
		e := admin.MailExchange{Host: strings.TrimSuffix(args[0], ".")}
		if findExchange(z, e.Host) >= 0 {
			return fmt.Errorf("%s is there already; `msgw dns exchange weight` changes its weight", e.Host)
		}
		if e.Weight, err = parseWeight(args[1]); err != nil {
			return err
		}
		if *address != "" {
			if e.Addresses, err = parseAddresses(list(*address)); err != nil {
				return fmt.Errorf("address: %w", err)
			}
		}
		switch {
		case *port < 1 || *port > 65535:
			return fmt.Errorf("port: %d, expected a port number", *port)
		case *port != 25:
			e.Port = *port
		}
		z.Exchanges = append(z.Exchanges, e)
		return nil
	})
}

func dnsExchangeWeightCommand() *cobra.Command {
	c := &cobra.Command{Use: "weight HOST WEIGHT", Short: "Change its share of the mail", Args: cobra.ExactArgs(2)}
	return exchangeChange(c, func(z *admin.ZoneSettings, args []string) error {
		i, err := mustFindExchange(z, args[0])
		if err != nil {
			return err
		}
		z.Exchanges[i].Weight, err = parseWeight(args[1])
		return err
	})
}

func dnsExchangeRemoveCommand() *cobra.Command {
	c := &cobra.Command{Use: "remove HOST", Short: "Take one out of the MX records", Args: cobra.ExactArgs(1)}
	return exchangeChange(c, func(z *admin.ZoneSettings, args []string) error {
		i, err := mustFindExchange(z, args[0])
		if err == nil {
			z.Exchanges = slices.Delete(z.Exchanges, i, i+1)
		}
		return err
	})
}

// exchangeChange completes a command that changes the exchanges.
func exchangeChange(c *cobra.Command, change func(z *admin.ZoneSettings, args []string) error) *cobra.Command {
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl := client(*dir)
		z, err := cl.Zone(c.Context())
		if err != nil {
			return err
		}
		if err := change(&z, args); err != nil {
			return usageError{err}
		}
		return changeZone(c, cl, z, *asJSON)
	}
	return c
}

func findExchange(z *admin.ZoneSettings, host string) int {
	return slices.IndexFunc(z.Exchanges, func(e admin.MailExchange) bool { return e.Host == strings.TrimSuffix(host, ".") })
}

func mustFindExchange(z *admin.ZoneSettings, host string) (int, error) {
	i := findExchange(z, host)
	if i < 0 {
		return i, fmt.Errorf("no exchange %s; `msgw dns exchange list` shows them", host)
	}
	return i, nil
}

func parseWeight(s string) (uint32, error) {
	w, err := strconv.ParseUint(s, 10, 32)
	if err != nil || w > raftstore.MaxWeight {
		return 0, fmt.Errorf("weight %q: expected 0 to %d", s, raftstore.MaxWeight)
	}
	return uint32(w), nil
}
