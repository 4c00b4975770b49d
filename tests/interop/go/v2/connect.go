package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/RichardKnop/machinery/v2"
	amqpbackend "github.com/RichardKnop/machinery/v2/backends/amqp"
	"github.com/RichardKnop/machinery/v2/backends/dynamodb"
	backends "github.com/RichardKnop/machinery/v2/backends/iface"
	"github.com/RichardKnop/machinery/v2/backends/memcache"
	"github.com/RichardKnop/machinery/v2/backends/mongo"
	redisbackend "github.com/RichardKnop/machinery/v2/backends/redis"
	amqpbroker "github.com/RichardKnop/machinery/v2/brokers/amqp"
	"github.com/RichardKnop/machinery/v2/brokers/gcppubsub"
	brokers "github.com/RichardKnop/machinery/v2/brokers/iface"
	redisbroker "github.com/RichardKnop/machinery/v2/brokers/redis"
	"github.com/RichardKnop/machinery/v2/brokers/sqs"
	"github.com/RichardKnop/machinery/v2/config"
	eagerlock "github.com/RichardKnop/machinery/v2/locks/eager"
	locks "github.com/RichardKnop/machinery/v2/locks/iface"
	redislock "github.com/RichardKnop/machinery/v2/locks/redis"
	"github.com/aws/aws-sdk-go-v2/aws"
	dynamodbclient "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	sqsclient "github.com/aws/aws-sdk-go-v2/service/sqs"
)

const version = "go v2"

// connect does what the factories of version 1 did.
func connect(asked options) (*machinery.Server, error) {
	found := configuration(asked)
	broker, err := brokerAt(found)
	if err != nil {
		return nil, err
	}
	backend, err := backendAt(found)
	if err != nil {
		return nil, err
	}
	var lock locks.Lock = eagerlock.New()
	if asked.lock != "" {
		lock = redislock.New(found, redisAt(asked.lock).hosts, 0, 3)
	}
	return machinery.NewServer(found, broker, backend, lock), nil
}

func brokerAt(found *config.Config) (brokers.Broker, error) {
	scheme, rest, _ := strings.Cut(found.Broker, "://")
	switch scheme {
	case "amqp":
		return amqpbroker.New(found), nil
	case "gcppubsub":
		project, subscription, _ := strings.Cut(rest, "/")
		return gcppubsub.New(found, project, subscription)
	case "http":
		place, client, err := awsConfig(found.Broker)
		if err != nil {
			return nil, err
		}
		found.Broker = place.url
		found.SQS = &config.SQSConfig{Client: sqsclient.NewFromConfig(client), WaitTimeSeconds: receiveWait}
		return sqs.New(found)
	case "redis":
		place := redisAt(found.Broker)
		if len(place.hosts) > 1 {
			return redisbroker.NewGR(found, place.hosts, 0), nil
		}
		return redisbroker.New(found, place.hosts[0], "", "", "", number(place)), nil
	}
	return nil, fmt.Errorf("no broker has the scheme %q", scheme)
}

func backendAt(found *config.Config) (backends.Backend, error) {
	scheme, rest, _ := strings.Cut(found.ResultBackend, "://")
	switch scheme {
	case "amqp":
		return amqpbackend.New(found), nil
	case "http":
		_, client, err := awsConfig(found.ResultBackend)
		if err != nil {
			return nil, err
		}
		found.DynamoDB = &config.DynamoDBConfig{
			Client: dynamodbclient.NewFromConfig(client), TaskStatesTable: statesTable, GroupMetasTable: groupsTable,
		}
		return dynamodb.New(found)
	case "memcache":
		return memcache.New(found, strings.Split(rest, ",")), nil
	case "mongodb":
		return mongo.New(found)
	case "redis":
		place := redisAt(found.ResultBackend)
		if len(place.hosts) > 1 {
			return redisbackend.NewGR(found, place.hosts, 0), nil
		}
		return redisbackend.New(found, place.hosts[0], "", "", "", number(place)), nil
	}
	return nil, fmt.Errorf("no result backend has the scheme %q", scheme)
}

// number is that of Redis's database.
func number(place redisPlace) int {
	found, _ := strconv.Atoi(place.database)
	return found
}

func awsConfig(text string) (awsPlace, aws.Config, error) {
	place, err := awsAt(text)
	keys := func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: place.key, SecretAccessKey: place.secret}, nil
	}
	return place, aws.Config{
		BaseEndpoint: &place.endpoint, Region: place.region, Credentials: aws.CredentialsProviderFunc(keys),
	}, err
}
