package journal

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestMain stores messages until it is killed, if it is told to.
func TestMain(m *testing.M) {
	dir := os.Getenv("JOURNAL_TEST_STORE")
	if dir == "" {
		os.Exit(m.Run())
	}
	j, err := Open(dir, Options{SegmentSize: 200_000, InlineMax: 5000, KeepGraves: true})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		id := NewID()
		if err := store(j, id, "mbx-1", make([]byte, 100+i%10*1000)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if i%3 > 0 {
			if err := j.Delete(id); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("deleted", id)
		} else {
			fmt.Println("stored", id)
		}
	}
}

// A process that is killed in the middle of its work leaves what it said it stored, on
// a real disk.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stored, deleted := map[string]bool{}, map[string]bool{}
	for round := range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "JOURNAL_TEST_STORE="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(50+round*37)*time.Millisecond, func() { cmd.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var what, id string
			if _, err := fmt.Sscan(lines.Text(), &what, &id); err != nil {
				continue // cut short
			}
			if _, err := ParseID(id); err != nil {
				t.Error(lines.Text())
			}
			switch what {
			case "stored":
				stored[id] = true
			case "deleted":
				deleted[id] = true
			}
		}
		cmd.Wait()
		kill.Stop()
		j := openDir(t, dir, Options{KeepGraves: true, CompactRate: -1})
		if d := j.Damaged(); len(d) > 0 {
			t.Fatalf("round %d: damage %v", round, d)
		}
		here, more := map[string]bool{}, 0
		if err := j.Verify(t.Context(), func(m Meta, err error) {
			if err != nil {
				t.Error(err)
			}
			if here[m.ID.String()] = true; !stored[m.ID.String()] {
				more++
			}
		}); err != nil {
			t.Fatal(err)
		}
		for id := range stored {
			if !here[id] {
				t.Fatalf("round %d: %s is gone", round, id)
			}
		}
		for id := range deleted {
			if here[id] {
				t.Fatalf("round %d: %s is back", round, id)
			}
		}
		if more > round+1 { // what was stored and not said when the end came
			t.Errorf("round %d: %d messages too many", round, more)
		}
		j.Close()
	}
	if len(stored) == 0 || len(deleted) == 0 {
		t.Errorf("%d stored, %d deleted: nothing was tested", len(stored), len(deleted))
	}
}
