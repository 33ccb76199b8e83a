//go:build race

package journal

// slow says how much slower than usual the tests run.
const slow = 8
