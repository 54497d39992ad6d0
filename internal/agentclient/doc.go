// Package agentclient is the host's side of api/agent/v1.
//
// The guest is hostile: every answer is bounded, checked and cleaned here, so that what leaves this package can be
// stored, logged and shown. A [Client] owns one control connection; [Client.Done] tells when it was lost. Its
// methods may be called concurrently. It keeps no state of containers and must not import the packages that do.
package agentclient
