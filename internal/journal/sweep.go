package journal

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// sweepBodies finds the body files of the held messages, removes those that no held
// message names, and reports those that are missing. No log is open for writing yet.
func (j *Journal) sweepBodies(origins []string, f *found) error {
	files := map[ID][]string{} // directories with a file of that name
	for _, o := range origins {
		dir := filepath.Join(j.dir, o, bodiesDir)
		names, err := j.fs.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := j.fs.SyncDir(dir); err != nil {
			return err
		}
		for _, n := range names {
			name, temp := strings.CutSuffix(n.Name(), tempSuffix)
			id, err := ParseID(name)
			if err != nil || n.IsDir() {
				j.log.Warn("journal: this is not the journal's and left alone", "file", filepath.Join(dir, n.Name()))
				continue
			}
			if temp {
				j.removeBody(id, filepath.Join(dir, n.Name()))
			} else {
				files[id] = append(files[id], dir)
			}
		}
	}
	if f.bodies {
		j.findBodies(files)
	}
	j.removeUnnamed(files)
	for _, o := range origins {
		if !slices.ContainsFunc(j.segments, func(s *segment) bool { return s.origin == o }) {
			// A process that stored nothing. Both fail if it left something after all.
			_ = j.fs.Remove(filepath.Join(j.dir, o, bodiesDir))
			_ = j.fs.Remove(filepath.Join(j.dir, o))
		}
	}
	return nil
}

// bodyFits reports whether a file holds the octets of e.
func (j *Journal) bodyFits(e *entry, path string) bool {
	f, err := j.fs.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(f, 0, e.sealed+1))
	return err == nil && n == e.sealed && [32]byte(sum.Sum(nil)) == e.sha
}

// findBodies takes the files of held messages out of files. A record that was copied
// lies in another origin than the body. Of several files, in logs that somebody copied,
// one that fits is taken; if none does, all stay.
func (j *Journal) findBodies(files map[ID][]string) {
	for i := range j.buckets {
		for id, e := range j.buckets[i].entries {
			if e.flags&bodyInFile == 0 {
				continue
			}
			dirs := files[id]
			own := filepath.Dir(j.bodyPath(e))
			if len(dirs) > 1 {
				k := slices.IndexFunc(dirs, func(dir string) bool { return j.bodyFits(e, filepath.Join(dir, id.String())) })
				if k < 0 {
					delete(files, id)
					continue
				}
				if dirs[k] != own {
					j.bodyDirs[id] = dirs[k]
				}
				files[id] = slices.Delete(dirs, k, k+1)
				continue
			}
			switch at := slices.Index(dirs, own); {
			case at >= 0:
				files[id] = slices.Delete(dirs, at, at+1)
			case len(dirs) > 0:
				j.bodyDirs[id] = dirs[0]
				files[id] = dirs[1:]
			default:
				path := j.bodyPath(e)
				j.damage = append(j.damage, Damage{File: path, ID: id, Err: fs.ErrNotExist})
				j.log.Error("journal is damaged: the body of a message is missing", "file", path)
			}
		}
	}
}

// removeUnnamed removes files that no held message names: nobody was told 250 for them,
// or they are deleted. Where damage hides records, a file may be the body of one of them,
// and all stay.
func (j *Journal) removeUnnamed(files map[ID][]string) {
	if slices.ContainsFunc(j.segments, func(s *segment) bool { return s.damaged }) {
		return
	}
	for id, dirs := range files {
		for _, dir := range dirs {
			j.removeBody(id, filepath.Join(dir, id.String()))
		}
	}
}
