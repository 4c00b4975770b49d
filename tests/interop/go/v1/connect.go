package main

import (
	"os"
	"strings"

	"github.com/RichardKnop/machinery/v1"
	"github.com/RichardKnop/machinery/v1/config"
	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/credentials"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/dynamodb"
	"github.com/aws/aws-sdk-go/service/sqs"
)

const version = "go v1"

// connect lets the factories of version 1 read the URLs.
func connect(asked options) (*machinery.Server, error) {
	found := configuration(asked)
	if asked.lock != "" {
		found.Lock = "redis://" + strings.Join(redisAt(asked.lock).hosts, ",") // in database 0
	}
	if isAWS(asked.broker) {
		place, client, err := awsClient(asked.broker)
		if err != nil {
			return nil, err
		}
		if err := os.Setenv("DISABLE_STRICT_SQS_CHECK", "yes"); err != nil { // else the host must be one of AWS's
			return nil, err
		}
		found.Broker = place.url
		found.SQS = &config.SQSConfig{Client: sqs.New(client), WaitTimeSeconds: receiveWait}
	}
	if isAWS(asked.backend) {
		_, client, err := awsClient(asked.backend)
		if err != nil {
			return nil, err
		}
		found.ResultBackend = "https://dynamodb" // which backend; where it is the client knows
		found.DynamoDB = &config.DynamoDBConfig{
			Client: dynamodb.New(client), TaskStatesTable: statesTable, GroupMetasTable: groupsTable,
		}
	}
	return machinery.NewServer(found)
}

func awsClient(text string) (awsPlace, *session.Session, error) {
	place, err := awsAt(text)
	if err != nil {
		return place, nil, err
	}
	client, err := session.NewSession(&aws.Config{
		Endpoint: &place.endpoint, Region: &place.region,
		Credentials: credentials.NewStaticCredentials(place.key, place.secret, ""),
	})
	return place, client, err
}
