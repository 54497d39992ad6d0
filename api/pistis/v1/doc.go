// Package pistisv1 is what an operator asks of the daemon beyond CRI: progress of a pull, import and export of
// images. It is a gRPC service on the CRI socket.
package pistisv1

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative pistis.proto
