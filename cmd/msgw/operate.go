package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
)

func inviteCommand() *cobra.Command {
	c := &cobra.Command{Use: "invite", Short: "Make a token for another node to join", GroupID: "operate", Args: cobra.NoArgs,
		Long: `Make a token with which one node can join. It works once, for a short time, and only
with this appliance: it names the certificate of the appliance's CA.`}
	dir := addDir(c)
	role := c.Flags().String("role", "site", "what the node will be: site or witness")
	life := c.Flags().Duration("for", time.Hour, "how long the token can be used")
	replaces := c.Flags().String("replace", "", "the lost `NODE` whose place the new one takes: it has its name and host name")
	c.RunE = func(c *cobra.Command, _ []string) error {
		i, err := client(*dir).Invite(c.Context(), admin.Invite{Role: *role, Life: *life, Replaces: *replaces})
		if err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(), "for one %s, until %s; on that machine: msgw join TOKEN\n", i.Role, i.Expires.Local().Format(time.DateTime))
		fmt.Fprintln(c.OutOrStdout(), i.Token)
		return nil
	}
	return c
}

func statusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Show how the node and the appliance are", GroupID: "operate", Args: cobra.NoArgs,
		Long: `Show how this node is and what it sees of the others. Exit code 1 if something needs a
person, 0 if all is well.`}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := client(*dir).Status(c.Context())
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if *asJSON {
			if err := printJSON(out, s); err != nil {
				return err
			}
			if len(s.Trouble) > 0 {
				return exitCode(exitFailed)
			}
			return nil
		}
		accepts := yesNo(s.Accepting)
		if s.Reason != "" {
			accepts += ": " + s.Reason
		}
		if s.Role == "witness" {
			accepts = "a witness takes none"
		}
		leader := s.Leader
		if leader == "" {
			leader = "none"
		}
		rows := [][]string{
			{"node", fmt.Sprintf("%s (%s) of %s, %s", s.Node, s.Role, s.Zone, s.Version)},
			{"accepts mail", accepts},
			{"waiting here", fmt.Sprintf("%d messages, %s, oldest %s", s.Waiting.Messages, size(s.Waiting.Octets), age(s.Waiting.Oldest))},
			{"configuration", fmt.Sprintf("revision %d, applied %d, epoch %d", s.Revision, s.Applied, s.Epoch)},
			{"quorum", fmt.Sprintf("%s, leader %s, voters %s", yesNo(s.Quorum), leader, strings.Join(s.Voters, " "))},
		}
		if s.Copies != nil {
			rows = append(rows, []string{"copies", fmt.Sprintf("%s for %s, policy %s, %d of the other site held here", copiesText(s.Copies), age(s.Copies.Since), s.Copies.Policy, s.Copies.Held)})
		}
		if s.Drain != nil {
			rows = append(rows, []string{"drained", drainText(s.Drain)}, []string{"switch off", switchOffText(s.Drain)})
		}
		if err := table(out, rows); err != nil {
			return err
		}
		rows = [][]string{{"\nPEER", "ROLE", "REACHABLE", "ACCEPTS", "APPLIED", "WAITING", "COPIES"}}
		for _, p := range s.Peers {
			accepts, waiting := yesNo(p.Accepting), "-"
			if p.Role == "witness" {
				accepts = "-"
			}
			if p.Waiting != nil {
				waiting = strconv.Itoa(p.Waiting.Messages)
			}
			rows = append(rows, []string{p.Name, p.Role, yesNo(p.Reachable), accepts, fmt.Sprint(p.Applied), waiting, copiesText(p.Copies)})
		}
		if len(s.Peers) > 0 {
			if err := table(out, rows); err != nil {
				return err
			}
		}
		for _, p := range s.Peers {
			if p.Drain != nil {
				fmt.Fprintf(out, "\n%s is drained %s; switch off: %s\n", p.Name, drainText(p.Drain), switchOffText(p.Drain))
			}
		}
		if err := table(out, append([][]string{{"\nMX", "STATE", "CLASS", "WEIGHT", "FIRST IN", "WHY"}}, mxRows(s.MX)...)); err != nil {
			return err
		}
		rows = [][]string{{"\nCERTIFICATE", "FROM", "UNTIL", "SERVED", "LAST ORDER", "NEXT ORDER"}}
		for _, x := range s.Certs {
			rows = append(rows, []string{strings.Join(x.Names, " "), x.Source, when(x.NotAfter), yesNo(x.Served), when(x.Last), when(x.Next)})
		}
		if err := table(out, rows); err != nil {
			return err
		}
		for _, x := range s.Certs {
			if x.Error != "" {
				fmt.Fprintf(out, "last order for %s: %s\n", strings.Join(x.Names, " "), x.Error)
			}
		}
		for _, t := range s.Trouble {
			fmt.Fprintln(out, "\nTROUBLE", t)
		}
		if len(s.Trouble) > 0 {
			return exitCode(exitFailed)
		}
		return nil
	}
	return c
}

func mxRows(mx []admin.MX) [][]string {
	var rows [][]string
	for _, m := range mx {
		rows = append(rows, []string{m.Host, m.State, m.Class, fmt.Sprint(m.Weight), fmt.Sprintf("%.1f %%", 100*m.Share), m.Reason})
	}
	return rows
}

func nodeCommand() *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Show nodes, change weights, drain", GroupID: "operate"}
	c.AddCommand(nodeListCommand(), nodeWeightCommand(), nodeAdoptCommand(), nodeRemoveCommand(), nodeDrainCommand(), nodeUndrainCommand())
	return c
}

func nodeListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the nodes", Args: cobra.NoArgs}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := client(*dir).Status(c.Context())
		if err != nil {
			return err
		}
		self := admin.Peer{Name: s.Node, Role: s.Role, Reachable: true, Epoch: s.Epoch, Applied: s.Applied, Accepting: s.Accepting, Reason: s.Reason, Drained: s.Drained, Drain: s.Drain, Waiting: &s.Waiting}
		nodes := append([]admin.Peer{self}, s.Peers...)
		if *asJSON {
			return printJSON(c.OutOrStdout(), nodes)
		}
		rows := [][]string{{"NODE", "ROLE", "REACHABLE", "ACCEPTS", "DRAINED", "WEIGHT"}}
		for _, n := range nodes {
			weight, drained := "-", yesNo(n.Drained)
			if n.Drain != nil && !n.Drain.Until.IsZero() {
				drained = drainText(n.Drain)
			}
			for _, m := range s.MX {
				if m.Node == n.Name {
					weight = fmt.Sprint(m.Weight)
				}
			}
			rows = append(rows, []string{n.Name, n.Role, yesNo(n.Reachable), yesNo(n.Accepting), drained, weight})
		}
		return table(c.OutOrStdout(), rows)
	}
	return c
}

func nodeWeightCommand() *cobra.Command {
	c := &cobra.Command{Use: "weight NODE WEIGHT", Short: "Change a site's share of the mail", Args: cobra.ExactArgs(2),
		Long: `Change a site's share of the mail. Equal weights balance, 1 and 0 make a primary and a
fallback, 3 and 1 send three quarters to the first.`}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		w, err := strconv.ParseUint(args[1], 10, 32)
		if err != nil {
			return usageError{fmt.Errorf("weight %q: expected a number from 0 to 1000", args[1])}
		}
		ch, err := client(*dir).SetWeight(c.Context(), args[0], uint32(w))
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s has weight %d\n", args[0], w)
		printChange(c.OutOrStdout(), ch)
		return nil
	}
	return c
}

func acmeCommand() *cobra.Command {
	c := &cobra.Command{Use: "acme [DIRECTORY]", Short: "Set where publicly trusted certificates come from", GroupID: "operate", Args: cobra.MaximumNArgs(1),
		Long: `Set the ACME directory from which every site gets a certificate for its own host name,
answering the challenge through its own DNS. Without a directory, go back to the
certificates of the appliance's own CA. What a node alone has to know, as the binding of its
account to one that the CA knows, is in its configuration file.`,
		Example: "  msgw acme https://acme-v02.api.letsencrypt.org/directory --email admin@example.com"}
	dir := addDir(c)
	var a admin.ACME
	c.Flags().StringVar(&a.Email, "email", "", "address for the ACME account")
	c.Flags().StringVar(&a.Profile, "profile", "", "profile of the directory's that certificates are ordered by")
	c.Flags().StringVar(&a.Chain, "chain", "", "common name of an issuer that the chain is to have, where the CA offers more than one")
	roots := c.Flags().String("root", "", "PEM file that the directory's own certificate is checked against")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			a.Directory = args[0]
		}
		var err error
		if a.Roots, err = readCertificates("root", *roots); err != nil {
			return err
		}
		ch, err := client(*dir).SetACME(c.Context(), a)
		if err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout(), "set; `msgw cert list` shows what is served and what is ordered")
		printChange(c.OutOrStdout(), ch)
		return nil
	}
	return c
}

func caCommand() *cobra.Command {
	c := &cobra.Command{Use: "ca", Short: "Print the certificate of the appliance's own CA", GroupID: "operate", Args: cobra.NoArgs,
		Long: `Print the certificate of the appliance's own CA, as PEM. Programs that are told to trust
it can check the sites' certificates before an ACME directory is set.`,
		Example: "  msgw ca > ca.pem"}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		pem, err := client(*dir).CA(c.Context())
		if err != nil {
			return err
		}
		fmt.Fprint(c.OutOrStdout(), pem)
		return nil
	}
	return c
}
