// Command soak wears a pistisd out: many pods come and go, several at a time and of all handlers, while the daemon is
// killed again and again; or very many pods live at once. It checks that nothing is lost and nothing left: every container
// exits with a code of its own, which must be reported, the daemon's memory must not grow from one of its lives to the
// next, and after the last pod nothing of them may be on the host. Run it with `make soak`, which gives it namespaces of
// its own.
package main
