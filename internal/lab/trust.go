package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"msgw/internal/admin"
	"msgw/internal/durable"
)

// setACME tells the nodes where to get certificates, if this lab was told.
func (l *Lab) setACME(ctx context.Context) error {
	if l.opt.ACME.Directory == "" {
		return nil
	}
	a := admin.ACME{Directory: l.opt.ACME.Directory, Roots: l.opt.ACME.Root}
	if _, err := l.Admin(l.file.Nodes[0].Name).SetACME(ctx, a); err != nil {
		return fmt.Errorf("acme: %w", err)
	}
	return nil
}

// writeCA writes what trusts every certificate that the nodes may show: the
// cluster's CA and the root of the ACME directory's certificates.
func (l *Lab) writeCA(ctx context.Context) error {
	bundle, err := l.Admin(l.file.Nodes[0].Name).CA(ctx)
	if err != nil {
		return err
	}
	path := filepath.Join(l.opt.Dir, issuerName)
	if issuer := l.opt.ACME.IssuerRoot; issuer != "" {
		if err := durable.ReplaceFile(path, []byte(issuer)); err != nil {
			return err
		}
	}
	issuer, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.ReplaceFile(l.file.CA, append([]byte(bundle), issuer...))
}
