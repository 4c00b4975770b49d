// A Machinery client and worker that is told what to do: one JSON request per line of standard input, one JSON reply
// per line of standard output, in any order. Ends when standard input does, so that none is left behind.
//
// The imports name version 2; the build for version 1 replaces "machinery/v2" by "machinery/v1".
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	stdlog "log"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/RichardKnop/machinery/v2"
	"github.com/RichardKnop/machinery/v2/backends/result"
	"github.com/RichardKnop/machinery/v2/config"
	"github.com/RichardKnop/machinery/v2/log"
	"github.com/RichardKnop/machinery/v2/tasks"
)

const poll = 10 * time.Millisecond

type options struct {
	broker, backend, lock, queue string
	maxPriority                  int
}

type request struct {
	ID         int
	Verb       string // send, get, state, pending, delayed or periodic
	Kind       string // task, chain, group or chord
	Signatures []*tasks.Signature
	Callback   *tasks.Signature
	Queue      string
	Spec, Name string  // of a periodic task
	Timeout    float64 // seconds
}

type value struct {
	Type  string
	Value interface{}
}

type reply struct {
	ID         int
	Error      string             `json:",omitempty"`
	Signatures []*tasks.Signature `json:",omitempty"` // as they were sent, or as they wait in the broker
	Values     [][]value          `json:",omitempty"` // of each task that was asked for
	State      *tasks.TaskState   `json:",omitempty"`
}

func main() {
	log.Set(stdlog.New(os.Stderr, "", stdlog.LstdFlags|stdlog.Lmicroseconds))
	asked := options{}
	flag.StringVar(&asked.broker, "broker", "", "URL of the broker")
	flag.StringVar(&asked.backend, "backend", "", "URL of the result backend")
	flag.StringVar(&asked.lock, "lock", "", "URL of the Redis of the lock of periodic tasks")
	flag.StringVar(&asked.queue, "queue", "machinery_tasks", "default queue, also of the worker")
	flag.IntVar(&asked.maxPriority, "max-priority", 0, "x-max-priority of RabbitMQ's queues")
	concurrency := flag.Int("concurrency", 0, "slots of the worker; 0: no worker")
	flag.StringVar(&ledger.folder, "ledger", "", "folder in which tasks note what they did")
	flag.Parse()

	server, err := connect(asked)
	if err == nil {
		err = server.RegisterTasks(taskFunctions())
	}
	if err != nil {
		stdlog.Fatal(err)
	}
	if *concurrency > 0 {
		go func() {
			if err := server.NewWorker("go-"+version, *concurrency).Launch(); err != nil {
				stdlog.Print(err)
			}
			os.Exit(0)
		}()
	}
	serve(server)
}

func configuration(asked options) *config.Config {
	declared := config.QueueDeclareArgs{}
	if asked.maxPriority > 0 {
		declared["x-max-priority"] = asked.maxPriority
	}
	return &config.Config{
		Broker:          plain(asked.broker),
		DefaultQueue:    asked.queue,
		ResultBackend:   plain(asked.backend),
		ResultsExpireIn: 3600,
		AMQP: &config.AMQPConfig{
			Exchange: "machinery_exchange", ExchangeType: "direct", BindingKey: asked.queue,
			PrefetchCount: 3, QueueDeclareArgs: declared,
		},
		Redis: &config.RedisConfig{
			MaxIdle: 3, IdleTimeout: 240, ReadTimeout: 15, WriteTimeout: 15, ConnectTimeout: 15,
			NormalTasksPollPeriod: 1000, DelayedTasksPollPeriod: 50,
			MasterName: redisAt(asked.broker).masterName,
		},
		GCPPubSub: &config.GCPPubSubConfig{},
	}
}

func serve(server *machinery.Server) {
	var writing sync.Mutex
	out := json.NewEncoder(os.Stdout)
	lines := json.NewDecoder(bufio.NewReader(os.Stdin))
	lines.UseNumber()
	for {
		var asked request
		if err := lines.Decode(&asked); err != nil {
			os.Exit(0)
		}
		go func() {
			answer := reply{ID: asked.ID}
			if err := do(server, &asked, &answer); err != nil {
				answer.Error = err.Error()
			}
			writing.Lock()
			defer writing.Unlock()
			if err := out.Encode(answer); err != nil {
				_ = out.Encode(reply{ID: asked.ID, Error: err.Error()})
			}
		}()
	}
}

func do(server *machinery.Server, asked *request, answer *reply) (err error) {
	for _, signature := range append(asked.Signatures[:len(asked.Signatures):len(asked.Signatures)], asked.Callback) {
		if err := asGo(signature); err != nil {
			return err
		}
	}
	switch asked.Verb {
	case "send":
		answer.Signatures, err = send(server, asked)
	case "get":
		answer.Values, err = get(server, asked)
	case "state":
		answer.State, err = server.GetBackend().GetState(asked.Signatures[0].UUID)
	case "pending":
		answer.Signatures, err = server.GetBroker().GetPendingTasks(asked.Queue)
	case "delayed":
		answer.Signatures, err = server.GetBroker().GetDelayedTasks()
	case "periodic":
		err = server.RegisterPeriodicTask(asked.Spec, asked.Name, asked.Signatures[0])
	default:
		err = fmt.Errorf("there is no verb %q", asked.Verb)
	}
	return err
}

// asGo gives arguments the Go values that a Go program would have given them.
func asGo(signature *tasks.Signature) error {
	if signature == nil {
		return nil
	}
	for i, arg := range signature.Args {
		found, err := tasks.ReflectValue(arg.Type, arg.Value)
		if err != nil {
			return err
		}
		signature.Args[i].Value = found.Interface()
	}
	for _, later := range append(append([]*tasks.Signature{signature.ChordCallback}, signature.OnSuccess...), signature.OnError...) {
		if err := asGo(later); err != nil {
			return err
		}
	}
	return nil
}

func send(server *machinery.Server, asked *request) ([]*tasks.Signature, error) {
	switch asked.Kind {
	case "chain":
		chain, err := tasks.NewChain(asked.Signatures...)
		if err != nil {
			return nil, err
		}
		_, err = server.SendChain(chain)
		return chain.Tasks, err
	case "group":
		group, err := tasks.NewGroup(asked.Signatures...)
		if err != nil {
			return nil, err
		}
		_, err = server.SendGroup(group, 0)
		return group.Tasks, err
	case "chord":
		group, err := tasks.NewGroup(asked.Signatures...)
		if err != nil {
			return nil, err
		}
		chord, err := tasks.NewChord(group, asked.Callback)
		if err != nil {
			return nil, err
		}
		_, err = server.SendChord(chord, 0)
		return append(group.Tasks, chord.Callback), err
	default:
		_, err := server.SendTask(asked.Signatures[0])
		return asked.Signatures[:1], err
	}
}

func get(server *machinery.Server, asked *request) (found [][]value, err error) {
	within, backend := time.Duration(asked.Timeout*float64(time.Second)), server.GetBackend()
	var results []reflect.Value
	switch asked.Kind {
	case "chain":
		results, err = result.NewChainAsyncResult(asked.Signatures, backend).GetWithTimeout(within, poll)
	case "chord":
		results, err = result.NewChordAsyncResult(asked.Signatures, asked.Callback, backend).GetWithTimeout(within, poll)
	default:
		for _, signature := range asked.Signatures {
			results, err = result.NewAsyncResult(signature, backend).GetWithTimeout(within, poll)
			if err != nil {
				return nil, err
			}
			found = append(found, values(results))
		}
		return found, nil
	}
	return [][]value{values(results)}, err
}

func values(results []reflect.Value) []value {
	found := []value{}
	for _, each := range results {
		found = append(found, value{each.Type().String(), each.Interface()})
	}
	return found
}
