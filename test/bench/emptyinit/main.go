// Command emptyinit is the least that a guest's first process can do: say that it runs. The boot of a guest whose
// init it is costs what the kernel alone costs.
package main

import "os"

// Marker is what it writes to the console.
const marker = "empty-init\n"

func main() {
	if console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0); err == nil {
		_, _ = console.WriteString(marker)
	}
	select {} // the kernel panics when its first process ends
}
