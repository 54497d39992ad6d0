// Command peerbench measures pistisd beside other CRI daemons in one run, through CRI and /proc, and prints a table of
// the numbers and of their ratios to the best peer's.
//
// Every daemon gets the same images, OCI runtimes and CNI configuration, and the daemons take turns, so that what else the
// machine does hits all of them. It asserts nothing: a ratio is a fact of one run. Run it with `PEERS=1 make bench`, which
// prepares the peers and gives it namespaces of its own.
package main
