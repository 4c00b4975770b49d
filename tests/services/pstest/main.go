// Google Pub/Sub in memory, for tests: one server on loopback until it is ended.
package main

import (
	"flag"
	"fmt"

	"cloud.google.com/go/pubsub/pstest"
)

func main() {
	port := flag.Int("port", 0, "where to listen; 0: anywhere")
	flag.Parse()
	server := pstest.NewServerWithPort(*port)
	fmt.Println("ready on", server.Addr)
	select {}
}
