package node

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestCheckOwner(t *testing.T) {
	t.Parallel()
	own, other := t.TempDir(), "/"
	if os.Geteuid() == 0 {
		other = t.TempDir()
		if err := os.Chown(other, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkOwner(own); err != nil {
		t.Errorf("own directory: %v", err)
	}
	var op *OperatorError
	if err := checkOwner(other); !errors.As(err, &op) || !strings.Contains(err.Error(), other+" belongs to") || !strings.Contains(op.Hint, "runuser -u") {
		t.Errorf("another user's directory: %v", err)
	}
}
