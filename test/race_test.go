//go:build race

package test

// raceDetector says that msgw is built with the race detector, as these tests are.
const raceDetector = true
