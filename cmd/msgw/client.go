package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"msgw/internal/admin"
	"msgw/internal/node"
)

// addDir adds --dir, by which a command finds its node.
func addDir(c *cobra.Command) *string {
	dir := c.Flags().String("dir", node.DefaultState, "state directory of the node to talk to")
	c.MarkFlagDirname("dir")
	return dir
}

func client(dir string) *admin.Client { return admin.NewClient(dir, node.SocketFile) }

// addJSON adds --json, which prints what the node answered.
func addJSON(c *cobra.Command) *bool {
	return c.Flags().Bool("json", false, "print JSON")
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table prints rows in columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// printChange says at which sites a change has not arrived.
func printChange(w io.Writer, c admin.Change) {
	if len(c.Missing) > 0 {
		fmt.Fprintf(w, "not yet applied at: %s (it will be once that node is back)\n", strings.Join(c.Missing, ", "))
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}

func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
