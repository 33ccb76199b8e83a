package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"msgw/internal/lab"
)

func labCommand() *cobra.Command {
	c := &cobra.Command{Use: "lab", Short: "Run a two-site appliance on this machine", GroupID: "try", Args: cobra.NoArgs,
		Long: `Run a two-site appliance on this machine, each node a process of its own: site 1 on
127.0.0.11, site 2 on 127.0.0.12, the witness on 127.0.0.13. It makes a mailbox, says
where everything listens, and runs until SIGINT or SIGTERM; then nothing is left of it,
unless --dir was given. DIR/lab.json tells tools where everything is.

With --demo it plays a story and ends: journal reports are sent by MX, an archive
fetches them, and site 1 is lost for good in mid-stream: killed, its state directory
deleted. A new machine takes its place. It exits 0 only if no message was lost or changed.`}
	var o lab.Options
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", "", "keep everything here; what an earlier lab left there is resumed")
	f.StringVar(&o.Net, "net", "127.0.0", "first three octets of the loopback addresses, so that several labs can run")
	f.BoolVar(&o.Witness, "witness", false, "add a witness, the third voter")
	f.BoolVar(&o.StandardPorts, "standard-ports", false, "listen on 25, 53, 110 and 995 (needs root) instead of 2525, 1053, 1110 and 1995")
	f.IntVar(&o.Mailboxes, "mailboxes", 1, "how many mailboxes to make")
	f.StringVar(&o.ACME.Directory, "acme", "", "ACME directory that the sites get certificates from (default: the lab's own CA only)")
	acmeRoot := f.String("acme-root", "", "PEM file that the directory's own certificate is checked against")
	issuerRoot := f.String("acme-issuer-root", "", "PEM file of the root that the directory's certificates end at, for those who read lab.json")
	demo := f.Bool("demo", false, "play the story and exit")
	messages := f.Int("messages", 300, "with --demo: how many journal reports to send")
	c.MarkFlagDirname("dir")
	c.MarkFlagFilename("acme-root", "pem", "crt")
	c.MarkFlagFilename("acme-issuer-root", "pem", "crt")
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		if o.Mailboxes < 1 || o.Mailboxes > 10000 {
			return usageError{fmt.Errorf("mailboxes: %d, expected 1 to 10000", o.Mailboxes)}
		}
		if *messages < 10 || *messages > 1000000 {
			return usageError{fmt.Errorf("messages: %d, expected 10 to 1000000", *messages)}
		}
		if a, err := netip.ParseAddr(o.Net + ".11"); err != nil || !a.IsLoopback() {
			return usageError{fmt.Errorf("net: %q, expected three octets of a loopback network, as in 127.0.0", o.Net)}
		}
		if o.ACME.Directory == "" && (*acmeRoot != "" || *issuerRoot != "") {
			return usageError{errors.New("acme: missing, expected the directory that --acme-root and --acme-issuer-root belong to")}
		}
		if o.ACME.Root, err = readCertificates("acme-root", *acmeRoot); err != nil {
			return err
		}
		if o.ACME.IssuerRoot, err = readCertificates("acme-issuer-root", *issuerRoot); err != nil {
			return err
		}
		if o.Program, err = os.Executable(); err != nil {
			return err
		}
		o.Out = c.OutOrStdout()
		if out, ok := o.Out.(*os.File); ok {
			o.Terminal = term.IsTerminal(int(out.Fd()))
		}
		l, err := lab.Start(c.Context(), o)
		if err != nil {
			if c.Context().Err() != nil {
				return nil // told to stop while it came up
			}
			return err
		}
		defer func() {
			if cerr := l.Close(); err == nil {
				err = cerr
			}
		}()
		if *demo {
			ok, err := l.Demo(c.Context(), *messages)
			if err == nil && !ok {
				return exitCode(exitFailed)
			}
			return err
		}
		l.Announce()
		return l.Serve(c.Context())
	}
	for verb, short := range map[string]string{"start": "Start a node of a running lab", "stop": "Stop a node of a running lab",
		"kill": "Kill a node of a running lab, as a power cut would"} {
		sub := &cobra.Command{Use: verb + " NODE", Short: short, Args: cobra.ExactArgs(1)}
		dir := sub.Flags().String("dir", "", "directory of the running lab")
		sub.MarkFlagDirname("dir")
		sub.RunE = func(c *cobra.Command, args []string) error {
			if *dir == "" {
				return usageError{errors.New("dir: missing, expected the directory of the running lab")}
			}
			return lab.Ask(c.Context(), *dir, verb, args[0])
		}
		c.AddCommand(sub)
	}
	return c
}
