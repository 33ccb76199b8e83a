//go:build race

package labtest

// raceDetector says that msgw is built with the race detector, as these tests are.
const raceDetector = true
