// Package vmmtest is for the tests of drivers whose VMM speaks HTTP and lives in a jail: it plays VMMs that fail, and makes what real
// ones boot.
//
// A driver's test program is its own VMM: [Fake.Main], called by TestMain, plays it where it is started as one. What it does
// there is what a file in its run directory says, which [Fake.Faults] writes.
package vmmtest
