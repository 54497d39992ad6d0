package main

// The ports that the lab's first process listens on, in the order in which they are dialled. The command's description
// goes in through the first, as JSON and an end of writing; its outcome comes back there, after the output.
const (
	controlPort = iota + 1
	stdoutPort
	stderrPort
)

// maxMessage bounds the JSON of either side, in bytes.
const maxMessage = 4 << 20

// job is what is to be run.
type job struct {
	Args []string
	Env  []string
	Dir  string
}

// outcome is how it went. Error says why it could not be run.
type outcome struct {
	Code  int
	Error string
}
