// Package transport carries streams between the host and a guest.
//
// The host dials a port of the guest, over whichever of two carriers the VMM offers:
//
//   - [VSOCK]: AF_VSOCK, one kernel socket per stream.
//   - [Client]: one byte pipe that carries all streams, multiplexed with yamux: a virtio-serial port, or a vsock stream
//     through [Hybrid], vsock behind a Unix socket of the VMM, where "CONNECT port\n" is answered with "OK n\n".
//
// [DirectPort] is beside the pipe: its streams have connections of their own wherever the VMM offers such. [Eager] reads and writes
// what carries messages that follow each other, on either side.
//
// Guests use [ListenVSOCK], or [OpenSerialPort] or [AcceptPipe], and [NewServer].
//
// Every stream of every carrier is a net.Conn with a method CloseWrite() error, which ends this side's bytes: the peer reads
// those that were written and then EOF, and reading goes on, but for streams to DirectPort, which that may end.
//
// # The multiplexed pipe
//
// What is written to a virtio-serial port before the guest has opened it may be lost or wait in the VMM, so
// the guest speaks first: once its port is open it sends the eight bytes of the greeting, the host answers
// with the same eight bytes, and then both sides start yamux, the host as its client. Keep-alive is off: the
// pipe lives exactly as long as the VM. Only the host opens streams.
//
// A stream starts with the port, four bytes big endian, from the host. A guest that listens there answers
// with the same four bytes; any other guest closes the stream. What follows is the stream's bytes, and
// yamux's FIN is the half close. yamux cannot say "I do not read any more", which a writer must learn, so
// the host's first stream, to port 0, carries notices both ways: the four-byte yamux id of a stream
// whose reader has gone. Whoever receives one fails its writes to that stream with EPIPE and sends its FIN;
// what it has not read yet stays readable.
//
// # Memory in common
//
// Streams take large data in small pieces. Beside them a guest may have memory that the host has too, a device that it opens with
// [OpenMemory]. What lies there, and when, is for those to agree on who use it.
//
// # Ownership and concurrency
//
// A Client or Server owns the pipe that it is given, its yamux session and its goroutines; Close ends and
// joins them. All methods may be called from any goroutine. The guest is not trusted: what it sends is
// bounded before yamux sees it.
//
// The package is linked into the guest's first process: it imports yamux, vsock and the standard library,
// and nothing of ours.
package transport
