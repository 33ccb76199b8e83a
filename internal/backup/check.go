package backup

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"filippo.io/age"

	"msgw/internal/ca"
	"msgw/raftstore"
)

// checkKeys makes sure that what a configuration calls keys are keys. caKey may be nil.
func checkKeys(s *raftstore.State, caKey []byte) error {
	root, err := ca.ParseCertificate(s.CA.Certificate)
	if err != nil {
		return fmt.Errorf("cluster CA: %w", err)
	}
	if caKey != nil {
		k, err := x509.ParsePKCS8PrivateKey(caKey)
		if err != nil {
			return errors.New("cluster CA: its key does not parse") // the cause could quote it
		}
		signer, ok := k.(crypto.Signer)
		public, comparable := root.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		if !ok || !comparable || !public.Equal(signer.Public()) {
			return errors.New("cluster CA: the key is not that of the certificate")
		}
	}
	if s.Signing.Clear != nil {
		if _, err := raftstore.ParseSigningKeys(s.Signing.Clear, s.Signing.Keys); err != nil {
			return fmt.Errorf("signing: %w", err)
		}
	}
	for id, m := range s.Mailboxes {
		for _, k := range m.Keys {
			if _, err := age.ParseHybridRecipient(k.Recipient); err != nil {
				return fmt.Errorf("mailbox %s: key %s: %w", id, k.ID, err)
			}
			if len(k.Wrap.Ciphertext) == 0 {
				return fmt.Errorf("mailbox %s: key %s has no secret half", id, k.ID)
			}
		}
	}
	return nil
}
