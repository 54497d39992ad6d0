// Package share serves directories and files of the host to a guest: FUSE in raw messages over a stream.
//
// It has two ends. A [Host] lives in the shim: it starts one server process per pod, clones the mounts that are to be
// shared, and puts them into the server's mount namespace. The server, [Main], is the same binary: it holds nothing
// but the pod's shares, has lost every capability that serving files does not need and every system call that it does
// not make, and answers each share's requests with workers of that share only.
//
// What a guest sends is hostile. Messages are bounded and checked; names are single names; files are descriptors with
// counted users, so that nothing is resolved twice; only regular files and directories are ever opened. The server's
// view of the host ends at the share even if all of that failed.
//
// A share that is watched tells the guest what changes in its root on the host, one change at a time, and the guest
// repeats it: see ShareChange in api/agent/v1.
//
// Where guest and server have memory in common, large messages leave their data there, where the guest says. The guest may
// change it at any time, and the VMM may cut it off, so that nothing is done with it but reading it from files and writing it to them.
//
// A guest that takes them gets the attributes of the directories that its request has changed in front of the answer. A request
// without a number is one whose sender wants no answer.
//
// A Host owns its process, its namespace and the mounts in it. A share is one stream: closing it ends the share, and
// the end of the stream says that the server has let go of all its files. The package imports nothing of ours
// but the contract with the guest, package transport for the memory's size and to wait for messages, and its own packages confine and ahead.
package share
