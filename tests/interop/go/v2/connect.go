package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/RichardKnop/machinery/v2"
	amqpbackend "github.com/RichardKnop/machinery/v2/backends/amqp"
	backends "github.com/RichardKnop/machinery/v2/backends/iface"
	"github.com/RichardKnop/machinery/v2/backends/memcache"
	"github.com/RichardKnop/machinery/v2/backends/mongo"
	redisbackend "github.com/RichardKnop/machinery/v2/backends/redis"
	amqpbroker "github.com/RichardKnop/machinery/v2/brokers/amqp"
	"github.com/RichardKnop/machinery/v2/brokers/gcppubsub"
	brokers "github.com/RichardKnop/machinery/v2/brokers/iface"
	redisbroker "github.com/RichardKnop/machinery/v2/brokers/redis"
	"github.com/RichardKnop/machinery/v2/config"
	eagerlock "github.com/RichardKnop/machinery/v2/locks/eager"
	locks "github.com/RichardKnop/machinery/v2/locks/iface"
	redislock "github.com/RichardKnop/machinery/v2/locks/redis"
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
		lock = redislock.New(found, []string{asked.lock}, 0, 3)
	}
	return machinery.NewServer(found, broker, backend, lock), nil
}

func brokerAt(found *config.Config) (brokers.Broker, error) {
	place, err := url.Parse(found.Broker)
	if err != nil {
		return nil, err
	}
	switch place.Scheme {
	case "amqp":
		return amqpbroker.New(found), nil
	case "gcppubsub":
		return gcppubsub.New(found, place.Host, strings.Trim(place.Path, "/"))
	case "redis":
		password, _ := place.User.Password()
		return redisbroker.New(found, place.Host, "", password, "", number(place)), nil
	}
	return nil, fmt.Errorf("no broker has the scheme %q", place.Scheme)
}

func backendAt(found *config.Config) (backends.Backend, error) {
	scheme, rest, _ := strings.Cut(found.ResultBackend, "://")
	switch scheme {
	case "amqp":
		return amqpbackend.New(found), nil
	case "memcache": // several servers make no URL
		return memcache.New(found, strings.Split(rest, ",")), nil
	case "mongodb":
		return mongo.New(found)
	case "redis":
		place, err := url.Parse(found.ResultBackend)
		if err != nil {
			return nil, err
		}
		password, _ := place.User.Password()
		return redisbackend.New(found, place.Host, "", password, "", number(place)), nil
	}
	return nil, fmt.Errorf("no result backend has the scheme %q", scheme)
}

// number is that of Redis's database.
func number(place *url.URL) int {
	found, _ := strconv.Atoi(strings.Trim(place.Path, "/"))
	return found
}
