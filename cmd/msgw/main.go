// Command msgw is the whole appliance: the node, and the operator's tool.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
	"msgw/internal/node"
)

// version is set at release builds.
var version = "0.1.0-dev"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// Exit codes.
const (
	exitOK       = 0
	exitFailed   = 1
	exitOperator = 2 // something for the operator to fix; trying again does not help
)

// run runs one command line and returns the exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var oe *node.OperatorError
	var ae *admin.Error
	var silent exitCode
	switch {
	case errors.As(err, &silent):
		return int(silent)
	case errors.As(err, &oe):
		complain(errOut, err, oe.Hint)
		if oe.MayPass {
			return exitFailed
		}
		return exitOperator
	case errors.As(err, &ae):
		complain(errOut, err, ae.Hint)
		if ae.Password != "" {
			fmt.Fprintf(out, "if the change was made, mailbox %s has the password %s\n", ae.ID, ae.Password)
		}
		if ae.Status < 500 {
			return exitOperator
		}
		return exitFailed
	}
	complain(errOut, err, "")
	if errors.As(err, new(usageError)) {
		return exitOperator
	}
	return exitFailed
}

// exitCode ends the program without another word.
type exitCode int

func (exitCode) Error() string { return "" }

// usageError is a command line that does not fit.
type usageError struct{ error }

func complain(w io.Writer, err error, hint string) {
	fmt.Fprintln(w, "msgw:", err)
	if hint != "" {
		fmt.Fprintln(w, "hint:", hint)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "msgw",
		Short: "Receive e-mail journals at two sites and keep them for the archive",
		Long: `msgw takes journal mail over SMTP at two sites, seals each message at rest, steers
the senders with its own DNS, and hands the mail to the archive over POP3.

A node is made once, with init at the first site and join at the others, or with
restore from a backup, and then runs with serve. All other commands talk to the node on this machine.`,
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
	})
	root.AddGroup(&cobra.Group{ID: "node", Title: "Make and run a node:"},
		&cobra.Group{ID: "operate", Title: "Operate the appliance:"},
		&cobra.Group{ID: "disaster", Title: "When a site is lost:"},
		&cobra.Group{ID: "try", Title: "Try it:"})
	root.AddCommand(serveCommand(), initCommand(), joinCommand(), restoreCommand(),
		inviteCommand(), statusCommand(), mailboxCommand(), nodeCommand(), copiesCommand(), journalCommand(), backupCommand(), verifyCommand(), dnsCommand(), acmeCommand(), certCommand(), caCommand(),
		recoverCommand(), yieldCommand(), rejoinCommand(), labCommand(), versionCommand())
	root.CompletionOptions.HiddenDefaultCmd = false
	strictArgs(root)
	return root
}

// strictArgs makes an unknown word or a wrong number of arguments a usage error.
func strictArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
			}
			return nil
		}
	}
	if c.HasSubCommands() && c.Run == nil && c.RunE == nil {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see `%s --help`", args[0], c.CommandPath())}
			}
			return c.Help()
		}
	}
	for _, sub := range c.Commands() {
		strictArgs(sub)
	}
}

func versionText() string {
	text := "msgw " + version
	if b, ok := debug.ReadBuildInfo(); ok {
		text += " " + b.GoVersion
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				text += " " + s.Value
			}
		}
	}
	return text
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", GroupID: "operate", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), versionText())
			return err
		}}
}
