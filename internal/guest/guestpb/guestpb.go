// Package guestpb has the words of the host and the agent in a virtual machine. They stand in
// guest.proto; go generate makes Go of them, with protoc and its two generators for Go.
package guestpb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative guest.proto
