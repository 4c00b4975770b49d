package main

import (
	"net/url"
	"strings"
)

// redisPlace is where redis://host:port,host:port/0?master_name=… leads: several hosts are a cluster, or with a name the
// sentinels of a master. Machinery reads neither from a URL.
type redisPlace struct {
	hosts      []string
	database   string
	masterName string
}

func redisAt(text string) (found redisPlace) {
	rest, ok := strings.CutPrefix(text, "redis://")
	if !ok {
		return found
	}
	rest, options, _ := strings.Cut(rest, "?")
	rest, found.database, _ = strings.Cut(rest, "/")
	found.hosts = strings.Split(rest, ",")
	_, found.masterName, _ = strings.Cut(options, "master_name=")
	return found
}

// plain is the URL that Machinery reads: to version 1, a database behind several hosts is a part of the last one.
func plain(text string) string {
	if place := redisAt(text); len(place.hosts) > 1 {
		return "redis://" + strings.Join(place.hosts, ",")
	}
	return text
}

// awsPlace is where http://key:secret@host:port/account?region=… leads. Machinery takes a client for that.
type awsPlace struct{ url, endpoint, region, key, secret string }

func isAWS(text string) bool { return strings.HasPrefix(text, "http://") }

func awsAt(text string) (awsPlace, error) {
	place, err := url.Parse(text)
	if err != nil {
		return awsPlace{}, err
	}
	secret, _ := place.User.Password()
	endpoint := place.Scheme + "://" + place.Host
	return awsPlace{endpoint + place.Path, endpoint, place.Query().Get("region"), place.User.Username(), secret}, nil
}

// The tables of results, by the names that Machinery gives them.
const statesTable, groupsTable = "task_states", "group_metas"

const receiveWait = 1 // seconds: without, its workers ask SQS for messages without a pause
