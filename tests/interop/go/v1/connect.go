package main

import "github.com/RichardKnop/machinery/v1"

const version = "go v1"

// connect lets the factories of version 1 read the URLs.
func connect(asked options) (*machinery.Server, error) {
	found := configuration(asked)
	if asked.lock != "" {
		found.Lock = "redis://" + asked.lock
	}
	return machinery.NewServer(found)
}
