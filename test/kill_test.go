package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
	"msgw/test/labtest"
)

// killRounds is how often TestKill kills the node; MSGW_KILL_ROUNDS sets another
// number.
const killRounds = 50

// TestKill kills the node with SIGKILL at random moments while it is sent mail and
// emptied, and checks that every acknowledged message is fetched octet for octet.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := killRounds
	if v := os.Getenv("MSGW_KILL_ROUNDS"); v != "" {
		var err error
		if rounds, err = strconv.Atoi(v); err != nil || rounds < 1 {
			t.Fatalf("MSGW_KILL_ROUNDS=%q: expected a number of rounds", v)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("MSGW_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("MSGW_SEED=%q: expected a number", v)
		}
	}
	t.Logf("MSGW_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))

	s := newSingle(t)
	s.start()
	s.await()
	box := s.mailbox()
	snd := s.sender()

	var mu sync.Mutex
	acked := map[int]bool{}
	fetched := map[int]int{}
	next, corrupt := 0, 0
	message := func(i int) []byte { return report.New(seed, i, 1<<10+(i*7919)%(400<<10)) }
	take := func(msg []byte) {
		mu.Lock()
		defer mu.Unlock()
		_, i, ok := report.Identify(msg)
		if !ok || !bytes.Equal(msg, message(i)) {
			corrupt++
			return
		}
		fetched[i]++
	}
	collect := func(ctx context.Context) error {
		got, err := s.fetch(ctx, box, box.Password, false, true)
		for _, msg := range got {
			take(msg)
		}
		return err
	}

	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(acked) >= rounds
	}
	// On a machine that is slow to start a node, more of it.
	for round := 0; round < rounds || !enough() && round < 3*rounds; round++ {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					mu.Lock()
					i := next
					next++
					mu.Unlock()
					env := sender.Envelope{From: "", To: []string{box.Address}}
					if i%2 == 0 {
						env.Chunks = &sender.Chunks{Sizes: []int{9000}}
					}
					if _, err := snd.Send(ctx, env, message(i)); err == nil {
						mu.Lock()
						acked[i] = true
						mu.Unlock()
					} else if se := (*sender.Error)(nil); ctx.Err() == nil && (!errors.As(err, &se) || !se.Temporary && !se.MaybeAccepted) {
						t.Errorf("round %d: refused for good: %v", round, err)
						return
					}
				}
			})
		}
		if round%3 == 0 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = collect(ctx) // it is killed meanwhile
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		time.Sleep(time.Duration(50+rng.IntN(500)) * time.Millisecond)
		s.kill(syscall.SIGKILL)
		cancel()
		wg.Wait()
		s.start()
		labtest.Within(t, 20*time.Second, fmt.Sprintf("round %d: node accepts mail again", round), func() error {
			_, err := s.admin().Status(t.Context())
			return err
		})
	}
	labtest.Within(t, 60*time.Second, "everything is fetched", func() error {
		if err := collect(t.Context()); err != nil {
			return err
		}
		st, err := s.admin().Status(t.Context())
		if err == nil && st.Waiting.Messages > 0 {
			err = fmt.Errorf("%d still wait", st.Waiting.Messages)
		}
		for _, tr := range st.Trouble {
			if err == nil && bytes.Contains([]byte(tr), []byte("journal")) {
				t.Errorf("damage: %s", tr)
			}
		}
		return err
	})
	lost, duplicates := 0, 0
	for i := range acked {
		if fetched[i] == 0 {
			lost++
		}
	}
	for _, n := range fetched {
		duplicates += n - 1
	}
	t.Logf("%d rounds: sent %d, acknowledged %d, fetched %d, lost %d, duplicates %d, corrupted %d", rounds, next, len(acked), len(fetched), lost, duplicates, corrupt)
	if lost > 0 || corrupt > 0 || len(acked) < rounds {
		t.Error("see above")
	}
}
