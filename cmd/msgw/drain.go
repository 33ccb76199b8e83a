package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
)

// waitTime is how long drain --wait waits where no --for is given.
const waitTime = 10 * time.Minute

func nodeDrainCommand() *cobra.Command {
	c := &cobra.Command{Use: "drain NODE", Short: "Ask senders to use the other site", Args: cobra.ExactArgs(1),
		Long: `Ask senders to use the other site: the node is answered last, and still accepts. If no
other site takes mail, it is answered as always. A drain belongs to the node itself and
needs no quorum; it survives a restart. With --for it ends by itself.

The command says whether the node can be switched off: senders have had the time to
notice (two times the TTL of 60 s), and every message there is at the other site as
well. With --wait it returns when that is so, and with exit code 1 if it did not come so
far within the time of --for, or 10 minutes.`,
		Example: "  msgw node drain msgw1\n  msgw node drain msgw1 --for 30m --wait"}
	dir := addDir(c)
	life := c.Flags().Duration("for", 0, "end the drain after that time, 1m to 720h (default: it lasts until undrain)")
	wait := c.Flags().Bool("wait", false, "return when the node can be switched off")
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.Flags().Changed("for") && *life == 0 {
			return usageError{errors.New("for 0s: expected 1m to 720h, or no --for for a drain without an end")}
		}
		out, cl, name := c.OutOrStdout(), client(*dir), args[0]
		d, err := cl.SetDrain(c.Context(), name, admin.SetDrain{Drained: true, For: *life})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is drained %s\nswitch off: %s\n", name, drainText(&d), switchOffText(&d))
		if !*wait || d.Safe {
			return nil
		}
		limit := waitTime
		if *life != 0 {
			limit = *life
		}
		if err := awaitSafe(c.Context(), cl.Status, name, limit, d); err != nil {
			return err
		}
		fmt.Fprintf(out, "switch off: %s\n", switchOffText(&admin.Drain{Safe: true}))
		return nil
	}
	return c
}

// awaitSafe asks for the status until a drained node can be switched off, at most so long.
func awaitSafe(ctx context.Context, status func(context.Context) (admin.Status, error), name string, limit time.Duration, d admin.Drain) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for last := switchOffText(&d); ; {
		if d.Alone {
			return fmt.Errorf("%s cannot be switched off without harm: %s", name, last)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s cannot be switched off after %v: %s", name, limit, last)
			}
			return ctx.Err()
		}
		s, err := status(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err != nil {
			continue // the time is over
		}
		p := admin.Peer{Name: s.Node, Reachable: true, Drain: s.Drain}
		for _, other := range s.Peers {
			if other.Name == name {
				p = other
			}
		}
		switch {
		case !p.Reachable:
			last = "not yet: " + name + " does not answer"
		case p.Drain == nil:
			return fmt.Errorf("%s is no longer drained", name)
		case p.Drain.Safe:
			return nil
		default:
			d, last = *p.Drain, switchOffText(p.Drain)
		}
	}
}

func nodeUndrainCommand() *cobra.Command {
	c := &cobra.Command{Use: "undrain NODE", Short: "Give a site new mail again", Args: cobra.ExactArgs(1)}
	dir := addDir(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if _, err := client(*dir).SetDrain(c.Context(), args[0], admin.SetDrain{}); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "%s is no longer drained\n", args[0])
		return nil
	}
	return c
}

// drainText says how long a drain lasts.
func drainText(d *admin.Drain) string {
	if d.Until.IsZero() {
		return "until it is undrained"
	}
	return "until " + d.Until.Local().Format(time.DateTime)
}

// switchOffText says whether a drained node can be switched off.
func switchOffText(d *admin.Drain) string {
	switch why := strings.Join(d.Missing, "; "); {
	case d.Safe:
		return "safe now: every message there is at the other site as well, and senders have been asked away"
	case d.Alone:
		return "not safe: " + why
	default:
		return "not yet: " + why
	}
}
