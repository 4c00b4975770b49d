package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/RichardKnop/machinery/v2/tasks"
)

func echo[T any](given T) (T, error) { return given, nil }

func echoScalars(
	a bool, b string, c int, d int8, e int16, f int32, g int64, h uint, i uint8, j uint16, k uint32, l uint64, m float32, n float64,
) (bool, string, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64, error) {
	return a, b, c, d, e, f, g, h, i, j, k, l, m, n, nil
}

func echoSlices(
	a []bool, b []string, c []int, d []int8, e []int16, f []int32, g []int64,
	h []uint, i []uint8, j []uint16, k []uint32, l []uint64, m []float32, n []float64, o []byte,
) (
	[]bool, []string, []int, []int8, []int16, []int32, []int64,
	[]uint, []uint8, []uint16, []uint32, []uint64, []float32, []float64, []byte, error,
) {
	return a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, nil
}

// taskFunctions are what the worker knows: the same as tests/interop/tasks.py, but for py_only there and go_only here.
func taskFunctions() map[string]interface{} {
	return map[string]interface{}{
		"echo_bool": echo[bool], "echo_string": echo[string],
		"echo_int": echo[int], "echo_int8": echo[int8], "echo_int16": echo[int16],
		"echo_int32": echo[int32], "echo_int64": echo[int64],
		"echo_uint": echo[uint], "echo_uint8": echo[uint8], "echo_uint16": echo[uint16],
		"echo_uint32": echo[uint32], "echo_uint64": echo[uint64],
		"echo_float32": echo[float32], "echo_float64": echo[float64],
		"echo_bools": echo[[]bool], "echo_strings": echo[[]string],
		"echo_ints": echo[[]int], "echo_int8s": echo[[]int8], "echo_int16s": echo[[]int16],
		"echo_int32s": echo[[]int32], "echo_int64s": echo[[]int64],
		"echo_uints": echo[[]uint], "echo_uint8s": echo[[]uint8], "echo_uint16s": echo[[]uint16],
		"echo_uint32s": echo[[]uint32], "echo_uint64s": echo[[]uint64],
		"echo_float32s": echo[[]float32], "echo_float64s": echo[[]float64],
		"echo_bytes": echo[[]byte], "echo_scalars": echoScalars, "echo_slices": echoSlices,

		"add":     func(a, b int64) (int64, error) { return a + b, nil },
		"total":   total,
		"join":    func(parts ...string) (string, error) { return strings.Join(parts, ","), nil },
		"pair":    func(number int64, text string) (int64, string, error) { return number + 1, text + "!", nil },
		"nothing": func() error { return nil },
		"fail":    func(text string) error { return errors.New(text) },
		"panics":  func(text string) error { panic(text) },
		"flaky":   flaky,
		"retried": retried,
		"later":   later,
		"sleep":   sleep,
		"note": func(ctx context.Context, numbers ...int64) (int64, error) {
			ledger.note("S", uuid(ctx))
			return total(numbers...)
		},
		"gather":    gather,
		"record":    func(ctx context.Context, text string) (string, error) { ledger.note("S", uuid(ctx)); return text, nil },
		"signature": signatureOf,
		"where":     func() (string, error) { return version, nil },
		"go_only":   func() (string, error) { return version, nil },
	}
}

func total(numbers ...int64) (sum int64, err error) {
	for _, number := range numbers {
		sum += number
	}
	return sum, nil
}

// flaky fails so many times, and then says how often it ran.
func flaky(ctx context.Context, failures int64) (int64, error) {
	if ran := runs.count(uuid(ctx)); ran > failures {
		return ran, nil
	}
	return 0, errors.New("not yet")
}

// retried fails while it has retries left, and then says as what it was sent, in a list: a text that begins with a JSON
// object is no text any more when it comes back from MongoDB.
func retried(ctx context.Context) (string, error) {
	if tasks.SignatureFromContext(ctx).RetryCount > 0 {
		return "", errors.New("not yet")
	}
	text, err := signatureOf(ctx)
	return "[" + text + "]", err
}

// later asks so many times to be run again after some milliseconds, and then says how often it ran.
func later(ctx context.Context, times, milliseconds int64) (int64, error) {
	if ran := runs.count(uuid(ctx)); ran > times {
		return ran, nil
	}
	return 0, tasks.NewErrRetryTaskLater("later", time.Duration(milliseconds)*time.Millisecond)
}

func sleep(ctx context.Context, milliseconds int64) (int64, error) {
	ledger.note("S", uuid(ctx))
	time.Sleep(time.Duration(milliseconds) * time.Millisecond)
	ledger.note("E", uuid(ctx))
	return milliseconds, nil
}

// gather writes down what it was given, in order.
func gather(ctx context.Context, numbers ...int64) (string, error) {
	ledger.note("S", uuid(ctx))
	defer ledger.note("E", uuid(ctx))
	return strings.Join(strings.Fields(strings.Trim(fmt.Sprint(numbers), "[]")), ","), nil
}

// signatureOf is the JSON of what this task was sent as.
func signatureOf(ctx context.Context) (string, error) {
	text, err := json.Marshal(tasks.SignatureFromContext(ctx))
	return string(text), err
}

func uuid(ctx context.Context) string { return tasks.SignatureFromContext(ctx).UUID }

type counter struct {
	sync.Mutex
	counts map[string]int64
}

var runs = counter{counts: map[string]int64{}}

func (c *counter) count(name string) int64 {
	c.Lock()
	defer c.Unlock()
	c.counts[name]++
	return c.counts[name]
}

// book is the one of tests/path/ledger.py: a file for each process in a folder, a line for each note.
type book struct {
	sync.Once
	folder string
	file   *os.File
}

var ledger book

func (b *book) note(what, id string) {
	if b.folder == "" {
		return
	}
	b.Do(func() {
		path := filepath.Join(b.folder, fmt.Sprint(os.Getpid()))
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			panic(err)
		}
		b.file = file
	})
	fmt.Fprintf(b.file, "%s %s %f\n", what, id, float64(time.Now().UnixMicro())/1e6)
}
