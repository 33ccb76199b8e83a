package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"msgw/internal/node"
)

// defaultConfig is where the configuration file is looked for.
const defaultConfig = "/etc/msgw/msgw.toml"

func addConfig(c *cobra.Command) *string {
	path := c.Flags().String("config", defaultConfig, "configuration file of this node")
	c.MarkFlagFilename("config", "toml")
	return path
}

func loadConfig(path string) (*node.Config, error) {
	cfg, err := node.LoadConfig(path)
	if err != nil {
		return nil, &node.OperatorError{Err: err, Hint: "deploy/msgw.toml is a commented example"}
	}
	return cfg, nil
}

func serveCommand() *cobra.Command {
	c := &cobra.Command{Use: "serve", Short: "Run the node on this machine", GroupID: "node", Args: cobra.NoArgs,
		Long: `Run the node on this machine until SIGTERM or SIGINT. The state directory must hold a
node, made by init or join; serve never makes one by itself.

Exit code 2 means that something is to be fixed before another try makes sense.`}
	path := addConfig(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		log, err := newLog(cfg, c.ErrOrStderr())
		if err != nil {
			return err
		}
		return node.Run(c.Context(), cfg, version, log)
	}
	return c
}

func newLog(cfg *node.Config, w io.Writer) (*slog.Logger, error) {
	level, err := cfg.Level()
	if err != nil {
		return nil, err
	}
	o := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

func initCommand() *cobra.Command {
	c := &cobra.Command{Use: "init", Short: "Make the first node of a new appliance", GroupID: "node", Args: cobra.NoArgs,
		Long: `Make the first node of a new appliance and write it to the state directory that the
configuration file names. Run it once, at one site; every other node uses join.`,
		Example: "  msgw init --config /etc/msgw/msgw.toml --zone msgw.example.com"}
	path := addConfig(c)
	var o node.InitOptions
	f := c.Flags()
	f.StringVar(&o.Zone, "zone", "", "zone that is delegated to the appliance, as in msgw.example.com")
	f.StringVar(&o.Contact, "contact", "", "mail address of whoever is responsible for the zone (default hostmaster@ its parent)")
	f.StringVar(&o.MXMode, "mx-mode", "tier", "how weights become MX preferences: tier or rank")
	f.StringVar(&o.ACME.Directory, "acme", "", "ACME directory for publicly trusted certificates")
	f.StringVar(&o.ACME.Email, "acme-email", "", "address for the ACME account")
	roots := f.String("acme-root", "", "PEM file that the ACME directory's own certificate is checked against")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		if o.ACME.Roots, err = readCertificates("acme-root", *roots); err != nil {
			return err
		}
		if err := node.Init(cfg, o); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "node %s made in %s\nrun it: msgw serve --config %s\nthen invite the other site: msgw invite --dir %s\n", cfg.Name, cfg.State, *path, cfg.State)
		return nil
	}
	return c
}

// readCertificates reads a file of PEM certificates; no path: none.
func readCertificates(flag, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", &node.OperatorError{Err: fmt.Errorf("%s: %w", flag, err)}
	}
	if !x509.NewCertPool().AppendCertsFromPEM(b) {
		return "", usageError{fmt.Errorf("%s: %s holds no certificate, expected PEM", flag, path)}
	}
	return string(b), nil
}

func joinCommand() *cobra.Command {
	c := &cobra.Command{Use: "join TOKEN", Short: "Make a node that joins an appliance", GroupID: "node", Args: cobra.ExactArgs(1),
		Long: `Make a node of the appliance that the token invites to, and write it to the state
directory that the configuration file names. The token comes from msgw invite on a
running node and works once. Without a token on the command line - give "-" - it is
read from standard input.`}
	path := addConfig(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		token := args[0]
		if token == "-" {
			b, err := io.ReadAll(io.LimitReader(c.InOrStdin(), 64<<10))
			if err != nil {
				return err
			}
			token = string(b)
		}
		if err := node.Join(c.Context(), cfg, token); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "node %s made in %s\nrun it: msgw serve --config %s\n", cfg.Name, cfg.State, *path)
		return nil
	}
	return c
}
