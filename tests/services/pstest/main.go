// Google Pub/Sub in memory, for tests: Google's own test server on loopback, until it is ended.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"time"

	pb "cloud.google.com/go/pubsub/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/pstest"
	"google.golang.org/grpc"
)

const (
	maxRequest = 11_000_000 // bytes: the limit of Google, 10 MB, is for the client to keep
	look       = 5 * time.Millisecond
)

// patient pulls wait for as long as the client does, and are woken by a message. Those of pstest look twice, half a
// second apart.
type patient struct {
	*pstest.GServer
}

func (server patient) Pull(ctx context.Context, request *pb.PullRequest) (*pb.PullResponse, error) {
	waits := !request.ReturnImmediately
	request.ReturnImmediately = true
	for {
		response, err := server.GServer.Pull(ctx, request)
		if err != nil || len(response.ReceivedMessages) > 0 || !waits {
			return response, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(look):
		}
	}
}

func main() {
	port := flag.Int("port", 0, "where to listen; 0: anywhere")
	flag.Parse()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	inner := pstest.NewServer()
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequest))
	pb.RegisterPublisherServer(server, &inner.GServer)
	pb.RegisterSubscriberServer(server, patient{&inner.GServer})
	fmt.Println("ready on", listener.Addr())
	log.Fatal(server.Serve(listener))
}
