package journal

import (
	"errors"
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
		for _, n := range names {
			name, temp := strings.CutSuffix(n.Name(), tempSuffix)
			id, err := ParseID(name)
			if err != nil || n.IsDir() {
				j.log.Warn("journal: this is not the journal's and left alone", "file", filepath.Join(dir, n.Name()))
				continue
			}
			if !temp {
				files[id] = append(files[id], dir)
			} else if err := j.fs.Remove(filepath.Join(dir, n.Name())); err != nil {
				return err
			}
		}
	}
	if f.bodies {
		j.findBodies(files)
	}
	if err := j.removeUnnamed(files, f); err != nil {
		return err
	}
	for _, o := range origins {
		if !slices.ContainsFunc(j.segments, func(s *segment) bool { return s.origin == o }) {
			// A process that stored nothing. Both fail if it left something after all.
			_ = j.fs.Remove(filepath.Join(j.dir, o, bodiesDir))
			_ = j.fs.Remove(filepath.Join(j.dir, o))
		}
	}
	return nil
}

// findBodies takes the files of held messages out of files. A record that was copied
// lies in another origin than the body.
func (j *Journal) findBodies(files map[ID][]string) {
	for i := range j.buckets {
		for id, e := range j.buckets[i].entries {
			if e.flags&bodyInFile == 0 {
				continue
			}
			dirs := files[id]
			own := filepath.Dir(j.bodyPath(e))
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
// and stays unless it is known to be deleted.
func (j *Journal) removeUnnamed(files map[ID][]string, f *found) error {
	var deleted map[ID]bool
	if slices.ContainsFunc(j.segments, func(s *segment) bool { return s.damaged }) {
		deleted = map[ID]bool{}
		for _, t := range f.tombs {
			if t.flags&tombEvicted != 0 {
				continue
			}
			for _, id := range t.ids {
				if _, ok := files[id]; ok {
					deleted[id] = true
				}
			}
		}
	}
	for id, dirs := range files {
		if deleted != nil && !deleted[id] {
			continue
		}
		for _, dir := range dirs {
			if err := j.fs.Remove(filepath.Join(dir, id.String())); err != nil {
				return err
			}
		}
	}
	return nil
}
