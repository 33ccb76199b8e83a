package journal

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"path/filepath"

	"msgw/internal/disk"
)

// Body collects the sealed octets of one message. A small one waits in memory, a
// large one streams to a file of its own, so that memory is bounded and a large
// message holds up nobody's commit. It is used by one goroutine.
type Body struct {
	j    *Journal
	id   ID
	mem  []byte
	file disk.File
	name string // of file, while it is temporary
	dest string
	size int64
	sum  hash.Hash
	err  error
}

// NewBody starts the sealed message of id. Either Commit or Discard ends it.
func (j *Journal) NewBody(id ID) *Body {
	return &Body{j: j, id: id, sum: sha256.New()}
}

// Write adds sealed octets.
func (b *Body) Write(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.file == nil && b.size+int64(len(p)) <= int64(b.j.opt.InlineMax) {
		b.mem = append(b.mem, p...)
	} else if b.err = b.writeFile(p); b.err != nil {
		return 0, b.err
	}
	b.size += int64(len(p))
	b.sum.Write(p)
	return len(p), nil
}

func (b *Body) writeFile(p []byte) error {
	// Few senders state the size beforehand. The reserve is for deletions, which
	// need room too, and for what else the node keeps on this disk.
	if err := b.j.Room(0); err != nil {
		return err
	}
	if b.file == nil {
		dir, err := b.j.bodyDir()
		if err != nil {
			return err
		}
		b.dest = filepath.Join(dir, b.id.String())
		if b.file, err = b.j.fs.Create(b.dest + tempSuffix); err != nil {
			return diskError("create body", err)
		}
		b.name = b.dest + tempSuffix
		if _, err := b.file.WriteAt(b.mem, 0); err != nil {
			return diskError("write body", err)
		}
		b.mem = nil
	}
	_, err := b.file.WriteAt(p, b.size)
	return diskError("write body", err)
}

// settle makes a body that lies in a file durable under its final name.
func (b *Body) settle() error {
	if b.err != nil || b.file == nil {
		return b.err
	}
	err := b.j.flush(b.file.Sync)
	if err == nil {
		err = b.file.Close()
		b.file = nil
	}
	if err == nil {
		if err := b.j.fs.Rename(b.name, b.dest); err != nil {
			b.err = diskError("name body", err) // nothing was flushed that counts
			return b.err
		}
		b.name = b.dest
		err = b.j.fs.SyncDir(filepath.Dir(b.dest))
	}
	if err != nil {
		// A failed flush says that the kernel may have dropped the pages. It is
		// never tried again, here or for anything else: the disk is not trusted.
		b.err = b.j.fail(fmt.Errorf("flush body of %s: %w", b.id, err))
	}
	return b.err
}

// stopped reports whether the journal failed or was closed.
func (j *Journal) stopped() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.closed || j.failed != nil
}

// inFile reports whether the body outgrew the segment.
func (b *Body) inFile() bool { return b.dest != "" }

// Discard drops a body that was not committed. It is safe to call always.
func (b *Body) Discard() {
	if b.file != nil {
		b.file.Close()
		b.file = nil
	}
	// After a failed flush the record that names this file may be on the disk.
	if b.name != "" && (b.name != b.dest || !b.j.stopped()) {
		if err := b.j.fs.Remove(b.name); err != nil {
			b.j.log.Warn("cannot remove the body of a refused message", "file", b.name, "err", err)
		}
		b.name = ""
	}
	b.mem = nil
	if b.err == nil {
		b.err = errors.New("body was discarded")
	}
}
