package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"msgw/internal/admin"
	"msgw/raftstore"
)

// off is the value by which a setting of the zone is taken back.
const off = "off"

func dnsSetCommand() *cobra.Command {
	c := &cobra.Command{Use: "set", Short: "Say what the zone holds besides the sites", Args: cobra.NoArgs,
		Long: `Say what the zone holds besides the sites' names, addresses and MX records. What is not
named stays as it is; without any option the settings are shown. docs/zone.md says what
each is good for, and in which order to switch them on.`,
		Example: `  msgw dns set --caa auto --tls-reports mailto:postmaster@example.com
  msgw dns set --ns ns1.example.com,ns2.example.com
  msgw dns set --mta-sts testing`}
	dir, asJSON := addDir(c), addJSON(c)
	f := c.Flags()
	f.String("ns", "", "names of the name servers, with commas between; one inside the zone that is no site's host name as `NAME=SITE`; or default: the sites' host names")
	f.String("apex", "", "addresses of the zone's own name, with commas between; sites: those of all sites; or off")
	f.String("caa", "", "domains of the CAs that may issue certificates, with commas between; auto: the CA of the ACME directory; or off: any may")
	f.String("caa-wildcards", "", "deny or allow certificates for wildcards")
	f.String("caa-iodef", "", "address or URL that CAs report violations to, as in mailto:postmaster@example.com, or off")
	f.String("caa-accounts", "", "yes: only the sites' own ACME accounts may order certificates; or no")
	f.String("tlsa", "", "on or off; of use only if the zone is signed")
	f.String("mta-sts", "", "testing, enforce, none, or off")
	f.String("mta-sts-max-age", "", "how long senders may keep the policy, as in 168h, or default")
	f.String("tls-reports", "", "addresses or URLs that senders report TLS failures to, with commas between, as in mailto:postmaster@example.com, or off")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl := client(*dir)
		z, err := cl.Zone(c.Context())
		if err != nil {
			return err
		}
		changed, err := setZone(f, &z)
		switch {
		case err != nil:
			return usageError{err}
		case changed:
			ch, err := cl.SetZone(c.Context(), z)
			if err != nil {
				return err
			}
			printChange(c.ErrOrStderr(), ch.Change)
			if z, err = cl.Zone(c.Context()); err != nil {
				return err
			}
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), z)
		}
		return printZone(c.OutOrStdout(), z)
	}
	return c
}

// setZone changes z as the flags say.
func setZone(f *pflag.FlagSet, z *admin.ZoneSettings) (changed bool, err error) {
	f.Visit(func(flag *pflag.Flag) {
		v := flag.Value.String()
		var e error
		switch flag.Name {
		case "ns":
			z.NameServers = parseNameServers(v)
		case "apex":
			z.Apex, e = parseApex(v)
		case "caa":
			if z.CAA.Issue = listUnlessOff(v); v == off {
				z.CAA = admin.CAA{}
			}
		case "caa-wildcards":
			z.CAA.DenyWildcards, e = parseEither(v, "deny", "allow")
		case "caa-iodef":
			z.CAA.Iodef = unless(v, off)
		case "caa-accounts":
			z.CAA.Accounts, e = parseEither(v, "yes", "no")
		case "tlsa":
			z.TLSA, e = parseEither(v, "on", off)
		case "mta-sts":
			z.MTASTS.Mode = unless(v, off)
		case "mta-sts-max-age":
			z.MTASTS.MaxAge, e = parseSeconds(v)
		case "tls-reports":
			z.TLSReports = listUnlessOff(v)
		default:
			return
		}
		changed = true
		if v == "" {
			e = errors.New("empty, expected a value")
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", flag.Name, e))
		}
	})
	return changed, err
}

// unless returns a value, or nothing if it is the word for that.
func unless(v, nothing string) string {
	if v == nothing {
		return ""
	}
	return v
}

// listUnlessOff takes a list apart; off is no list.
func listUnlessOff(v string) []string {
	if v == off {
		return nil
	}
	return list(v)
}

// parseEither takes one of two words.
func parseEither(v, yes, no string) (bool, error) {
	if v != yes && v != no {
		return false, fmt.Errorf("%q, expected %s or %s", v, yes, no)
	}
	return v == yes, nil
}

func parseNameServers(v string) (out []admin.NameServer) {
	for _, s := range list(v) { // default is none
		name, site, _ := strings.Cut(s, "=")
		out = append(out, admin.NameServer{Name: strings.TrimSuffix(name, "."), Site: site})
	}
	return out
}

func parseApex(v string) ([]string, error) {
	if v == raftstore.ApexSites {
		return []string{v}, nil
	}
	return parseAddresses(listUnlessOff(v))
}

func parseAddresses(list []string) ([]string, error) {
	for i, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q, expected an address, as in 192.0.2.1", s)
		}
		list[i] = a.String()
	}
	return list, nil
}

func parseSeconds(v string) (uint32, error) {
	if v == defaults {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < time.Second || d > 10*365*24*time.Hour {
		return 0, fmt.Errorf("%q, expected a time, as in 168h, or default", v)
	}
	return uint32(d / time.Second), nil
}

// changeZone makes a change and says what came of it.
func changeZone(c *cobra.Command, cl *admin.Client, z admin.ZoneSettings, asJSON bool) error {
	ch, err := cl.SetZone(c.Context(), z)
	if err != nil {
		return err
	}
	out := c.OutOrStdout()
	if asJSON {
		return printJSON(out, ch)
	}
	printChange(out, ch.Change)
	return nil
}

func printNotes(w io.Writer, notes []string) {
	for _, n := range notes {
		fmt.Fprintln(w, "note:", n)
	}
}

func printZone(w io.Writer, z admin.ZoneSettings) error {
	var ns []string
	for _, n := range z.NameServers {
		if n.Site != "" {
			n.Name += "=" + n.Site
		}
		ns = append(ns, n.Name)
	}
	age, tlsa, wild := "default (168h)", off, "allow"
	if z.MTASTS.MaxAge > 0 {
		age = (time.Duration(z.MTASTS.MaxAge) * time.Second).String()
	}
	if z.TLSA {
		tlsa = "on"
	}
	if z.CAA.DenyWildcards {
		wild = "deny"
	}
	if err := table(w, [][]string{{"SETTING", "VALUE"},
		{"ns", cmp.Or(strings.Join(ns, ","), "default (the sites' host names)")}, {"apex", cmp.Or(strings.Join(z.Apex, ","), off)},
		{"caa", cmp.Or(strings.Join(z.CAA.Issue, ","), off)}, {"caa-wildcards", wild}, {"caa-iodef", cmp.Or(z.CAA.Iodef, off)}, {"caa-accounts", yesNo(z.CAA.Accounts)},
		{"tlsa", tlsa}, {"mta-sts", cmp.Or(z.MTASTS.Mode, off)}, {"mta-sts-max-age", age}, {"tls-reports", cmp.Or(strings.Join(z.TLSReports, ","), off)},
		{"records", strconv.Itoa(len(z.Records))}, {"exchanges", strconv.Itoa(len(z.Exchanges))}}); err != nil {
		return err
	}
	printNotes(w, z.Notes)
	return nil
}

func dnsRecordCommand() *cobra.Command {
	c := &cobra.Command{Use: "record", Short: "Show, add and remove records of the zone"}
	c.AddCommand(dnsRecordListCommand(),
		dnsRecordChange("add", "Add a record, in the syntax of zone files", `  msgw dns record add 'www 3600 IN A 192.0.2.80'
  msgw dns record add '@ TXT "v=spf1 -all"'`,
			func(z *admin.ZoneSettings, text string) error {
				z.Records = append(z.Records, text)
				return nil
			}),
		dnsRecordChange("remove", "Remove a record, whatever its TTL", `  msgw dns record remove 'www A 192.0.2.80'`, removeRecord))
	return c
}

func dnsRecordListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the records that were added", Args: cobra.NoArgs}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		z, err := client(*dir).Zone(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), z.Records)
		}
		for _, r := range z.Records {
			fmt.Fprintln(c.OutOrStdout(), strings.ReplaceAll(r, "\t", " "))
		}
		return nil
	}
	return c
}

// dnsRecordChange is a command that changes the records by one, given in canonical form.
func dnsRecordChange(verb, short, example string, change func(z *admin.ZoneSettings, text string) error) *cobra.Command {
	c := &cobra.Command{Use: verb + " RECORD", Short: short, Example: example, Args: cobra.ExactArgs(1)}
	dir, asJSON := addDir(c), addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl := client(*dir)
		z, err := cl.Zone(c.Context())
		if err != nil {
			return err
		}
		_, text, err := raftstore.ParseRecord(z.Zone, args[0])
		if err == nil {
			err = change(&z, text)
		}
		if err != nil {
			return usageError{err}
		}
		return changeZone(c, cl, z, *asJSON)
	}
	return c
}

func removeRecord(z *admin.ZoneSettings, text string) error {
	i := slices.IndexFunc(z.Records, func(have string) bool { return raftstore.SameRecord(have, text) })
	if i < 0 {
		return fmt.Errorf("no record %s; `msgw dns record list` shows them", strings.ReplaceAll(text, "\t", " "))
	}
	z.Records = slices.Delete(z.Records, i, i+1)
	return nil
}
