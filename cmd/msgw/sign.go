package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
	"msgw/raftstore"
)

func dnsSignCommand() *cobra.Command {
	c := &cobra.Command{Use: "sign [on|off]", Short: "Sign the zone with DNSSEC, or stop", Args: cobra.MaximumNArgs(1), ValidArgs: []string{"on", "off"},
		Long: `Sign the zone with DNSSEC, or stop. Without an argument it says how the zone is signed and
what comes next.

on makes a key, which both sites sign with from then on. Nothing depends on it until the
parent zone has the key's DS record: 'msgw dns records' shows it, from when it may be put
there. Whoever validates believes signed answers only.

off goes the way back, in three steps that are enforced: it asks the parent to remove its DS
(CDS and CDNSKEY records, for parents that look at them; else you do it); when called again
it looks whether every server of the parent has removed it; and when called again after
resolvers have forgotten the DS, signing ends. Called too early it says until when to wait,
and changes nothing. on takes the first two steps back.`,
		Example: "  msgw dns sign\n  msgw dns sign on\n  msgw dns sign off\n  msgw dns sign off --ds-removed-at 2027-01-31T12:00:00Z"}
	dir, asJSON := addDir(c), addJSON(c)
	f := c.Flags()
	ttl := f.Duration("max-ttl", raftstore.DefaultMaxTTL*time.Second, "on: the highest TTL in the zone, 1s to 24h; the steps of a rollover wait for twice that")
	removed := f.String("ds-removed-at", "", "off: when the parent removed its DS, where this cannot be seen from here; as in 2027-01-31T12:00:00Z")
	force := f.Bool("force", false, "off: stop now, whatever the parent has; while a resolver still knows a DS, it finds nothing in the zone, and its mail waits or bounces")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			s, err := client(*dir).Signing(c.Context())
			if err != nil {
				return err
			}
			return printSigning(c.OutOrStdout(), *asJSON, s)
		}
		r := admin.Sign{Want: args[0], Force: *force}
		switch {
		case r.Want != "on" && r.Want != "off":
			return usageError{fmt.Errorf("%q: expected on or off", r.Want)}
		case r.Want == "on" && (*force || *removed != ""), r.Want == "off" && f.Changed("max-ttl"):
			return usageError{fmt.Errorf("an option that does not go with %s; see `%s --help`", r.Want, c.CommandPath())}
		case *force && *removed != "":
			return usageError{errors.New("--force does not wait, so --ds-removed-at says nothing")}
		case *ttl < time.Second || *ttl > 48*time.Hour || *ttl%time.Second != 0:
			return usageError{fmt.Errorf("max-ttl %v: expected whole seconds, 1s to 24h", *ttl)}
		}
		if r.Want == "on" {
			r.MaxTTL = uint32(*ttl / time.Second)
		}
		var err error
		if r.Changed, err = parseTime("ds-removed-at", *removed); err != nil {
			return err
		}
		s, err := client(*dir).Sign(c.Context(), r)
		if err != nil {
			return err
		}
		return printSigning(c.OutOrStdout(), *asJSON, s)
	}
	return c
}

func dnsRolloverCommand() *cobra.Command {
	c := &cobra.Command{Use: "rollover", Short: "Take the next step of changing the key that signs the zone", Args: cobra.NoArgs,
		Long: `Take the next step of changing the key that signs the zone. The same command takes each of
them, in their order, and refuses one that would come too early:

  1. A new key is published beside the old one, which goes on signing.
  2. When every resolver has seen it, the new key signs. The DS in the parent zone is to be
     replaced now by that of the new key: 'msgw dns records' shows it.
  3. When every server of the parent has the new DS and only that, and resolvers have
     forgotten the old one and what the old key signed, the old key is removed.

At no moment does an answer depend on something that a resolver may not have yet, or not
have any more. 'msgw dns sign' says where it stands and when the next step may be taken.`}
	dir, asJSON := addDir(c), addJSON(c)
	changed := c.Flags().String("ds-changed-at", "", "step 3: when the parent changed its DS, where this cannot be seen from here; as in 2027-01-31T12:00:00Z")
	c.RunE = func(c *cobra.Command, _ []string) error {
		at, err := parseTime("ds-changed-at", *changed)
		if err != nil {
			return err
		}
		s, err := client(*dir).Sign(c.Context(), admin.Sign{Want: "rollover", Changed: at})
		if err != nil {
			return err
		}
		return printSigning(c.OutOrStdout(), *asJSON, s)
	}
	return c
}

// parseTime reads the time of an option; empty is the zero time.
func parseTime(option, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usageError{fmt.Errorf("%s %q: expected a time as in 2027-01-31T12:00:00Z", option, text)}
	}
	return t, nil
}

var phaseText = map[string]string{
	string(raftstore.Unsigned): "not signed",
	string(raftstore.Signed):   "signed",
	string(raftstore.NewKey):   "signed; rollover step 1: a new key is published",
	string(raftstore.NewDS):    "signed; rollover step 2: the new key signs, and the parent's DS is to be replaced",
	string(raftstore.Leaving):  "signed; on its way to being unsigned: the parent's DS is to be removed",
}

func printSigning(w io.Writer, asJSON bool, s admin.Signing) error {
	if asJSON {
		return printJSON(w, s)
	}
	fmt.Fprintf(w, "zone %s: %s\n", s.Zone, phaseText[s.Phase])
	if s.Phase == "" {
		return nil
	}
	rows := [][]string{{"KEY", "CREATED", "SIGNS", "DS"}}
	for _, k := range s.Keys {
		signs := "the keys"
		if k.Signs {
			signs = "all"
		}
		rows = append(rows, []string{strconv.Itoa(int(k.Tag)), k.Created.Local().Format(time.DateTime), signs, k.DS})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	switch {
	case s.Next.IsZero():
		fmt.Fprintf(w, "next step: not yet: %s\n", s.Waiting)
	case time.Now().Before(s.Next):
		fmt.Fprintf(w, "next step: from %s on, %s\n", s.Next.Local().Format(time.DateTime), s.Waiting)
	default:
		fmt.Fprintln(w, "next step: possible now")
	}
	for _, d := range s.Do {
		fmt.Fprintln(w, "to do:", d)
	}
	printChange(w, admin.Change{Missing: s.Missing})
	if s.Trouble != "" {
		fmt.Fprintln(w, "trouble:", s.Trouble)
	}
	return nil
}
