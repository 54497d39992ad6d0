// Package shimclient is the daemon's side of a VM shim: launch, connect again, use, take down.
//
// A [Client] is one connection to one living shim, and one more for each call that has to end in the shim with its caller. It
// owns the connections and a handle of the process, and nothing of the sandbox: closing it leaves the shim running, and
// any number of clients may speak to one shim. When the shim dies, everything that waits is answered: exits with code
// 255 and the reason, calls with ErrUnavailable. What the dead shim left is removed by [Cleanup].
//
// What it shares with any other containerd shim stands by itself: a [Bootstrap] is what the binary is told, [Tasks] the task
// service, and a [Shim] a connection to one that is nothing more.
//
// Methods may be called concurrently. The package must not import the shim's own packages.
package shimclient
