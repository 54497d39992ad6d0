// Package signature decides by a policy which images may be pulled and run, and checks the signatures that it asks for.
//
// A policy is a file in the format of containers-policy.json(5), of which this package knows insecureAcceptAnything, reject
// and sigstoreSigned with public keys. A file with anything else is refused as a whole: a requirement that is not
// understood must not count as met. Signatures are cosign's: of a payload (simple signing) that names the digest of a
// manifest and what it is to be called.
//
// It has no state and touches no registry: who pulls brings the signatures. They are a stranger's: bounded by who
// brings them, parsed after their signature was found right.
//
// It imports nothing of ours.
package signature
