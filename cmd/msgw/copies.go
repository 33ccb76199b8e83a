package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
)

func copiesCommand() *cobra.Command {
	c := &cobra.Command{Use: "copies", Short: "Show or change how the sites keep copies for each other", GroupID: "operate", Args: cobra.NoArgs,
		Long: `Show how the sites keep copies for each other, or change what is named. 0 stands for
the default.

Under the policy available a message has two copies, or one while the other site is
known to be gone. Under strict it always has two: while the other site is gone, senders
are told to try again later. A mailbox can have a policy of its own.`,
		Example: "  msgw copies --policy strict\n  msgw copies --adopt 30m --bandwidth 20MB"}
	dir, asJSON := addDir(c), addJSON(c)
	f := c.Flags()
	policy := f.String("policy", "", "available or strict")
	bandwidth := f.String("bandwidth", "", "for copies that no sender waits for, in octets per second, as in 20MB; 0: not bounded")
	times := map[string]*time.Duration{}
	for _, t := range []struct{ name, text string }{
		{"refused", "from a broken link that the other site refuses to renew until it counts as gone"},
		{"silent", "from the last sign of the other site until it counts as gone"},
		{"wait", "how long a sender is kept waiting for the second copy, at most"},
		{"adopt", "silence after which the other site's messages are handed over here"},
		{"adopt-confirmed", "the same, if the witness does not reach it either"},
		{"return", "how long a site waits after its start to hear what the other one handed over"},
	} {
		times[t.name] = f.Duration(t.name, 0, t.text)
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl := client(*dir)
		now, err := cl.Copies(c.Context())
		if err != nil {
			return err
		}
		changed := f.Changed("policy") || f.Changed("bandwidth")
		fields := map[string]*time.Duration{"refused": &now.Refused, "silent": &now.Silent, "wait": &now.Wait, "adopt": &now.Adopt,
			"adopt-confirmed": &now.AdoptConfirmed, "return": &now.Return}
		for name, value := range times {
			if f.Changed(name) {
				*fields[name], changed = *value, true
			}
		}
		if f.Changed("policy") {
			if *policy == "" {
				return usageError{fmt.Errorf("policy %q: expected available or strict", *policy)}
			}
			now.Policy = *policy
		}
		if f.Changed("bandwidth") {
			if now.Bandwidth, err = parseSize(*bandwidth); err != nil {
				return usageError{fmt.Errorf("bandwidth: %w", err)}
			}
		}
		if changed {
			ch, err := cl.SetCopies(c.Context(), now)
			if err != nil {
				return err
			}
			printChange(c.ErrOrStderr(), ch)
			if now, err = cl.Copies(c.Context()); err != nil {
				return err
			}
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), now)
		}
		rate := "not bounded"
		if now.Bandwidth > 0 {
			rate = size(now.Bandwidth) + " per second"
		}
		return table(c.OutOrStdout(), [][]string{{"policy", now.Policy}, {"refused", now.Refused.String()}, {"silent", now.Silent.String()},
			{"wait", now.Wait.String()}, {"adopt", now.Adopt.String()}, {"adopt-confirmed", now.AdoptConfirmed.String()},
			{"return", now.Return.String()}, {"bandwidth", rate}})
	}
	return c
}

// parseSize reads a number of octets, as in 250MB. K, M and G are powers of 1024, as
// they are printed.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToUpper(s), "KMGIB ")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSpace(strings.ToUpper(s)[len(digits):]), "B"), "I")
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}[unit]
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || n < 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q: expected a number of octets, as in 20MB", s)
	}
	return n << shift, nil
}

func nodeAdoptCommand() *cobra.Command {
	c := &cobra.Command{Use: "adopt NODE", Short: "Hand the messages of a lost site over here, now", Args: cobra.ExactArgs(1),
		Long: `Hand the messages of a lost site over here, from the copies that this site keeps,
without waiting until it was silent for long. It needs no quorum. When the site is
back, it takes its messages back; the worst that follows is that the archive gets some
of them twice.`}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		x, err := client(*dir).Adopt(c.Context(), args[0])
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%d messages of %s are handed over here until it is back\n", x.Held, args[0])
		return nil
	}
	return c
}

func mailboxPolicyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy MAILBOX POLICY", Short: "Say how many copies its messages must have", Args: cobra.ExactArgs(2),
		Long: `Say how many copies a mailbox's messages must have: available (two, or one while the
other site is gone), strict (always two), or default (as the appliance). If a message
is for several mailboxes, the strictest governs it.`}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		policy := args[1]
		switch policy {
		case "default":
			policy = ""
		case "":
			return usageError{fmt.Errorf("policy %q: expected available, strict or default", policy)}
		}
		ch, err := client(*dir).SetMailboxPolicy(c.Context(), args[0], policy)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s has the policy %s\n", args[0], args[1])
		printChange(c.OutOrStdout(), ch)
		return nil
	}
	return c
}

// copiesText says in a few words how the copies of a site are.
func copiesText(c *admin.Copies) string {
	if c == nil {
		return "-"
	}
	text := c.State
	if c.Single > 0 {
		text += fmt.Sprintf(", %d with one copy", c.Single)
		if !c.Compared {
			text += " or more"
		}
	}
	return text
}
