package history

import (
	"fmt"
	"runtime"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Linearizability is the outcome of the check.
type Linearizability string

const (
	Linearizable    Linearizability = "yes"
	NotLinearizable Linearizability = "no"
	Undecided       Linearizability = "unknown" // the time did not suffice
)

// value is the state of one key: a Redis string, or none.
type value struct {
	present bool
	text    string
}

// request and answer are what the model gets of an operation.
type request struct {
	kind  Kind
	value string
}

type answer struct {
	known  bool
	text   string
	absent bool
	number int64
}

// step is the sequential specification of one key: given the state before, may the request have had
// this answer, and what is the state after.
func step(before value, q request, a answer) (bool, value) {
	switch q.kind {
	case Get:
		return !a.known || (a.absent == !before.present && (a.absent || a.text == before.text)), before
	case Set:
		return true, value{present: true, text: q.value}
	case Append:
		after := value{present: true, text: before.text + q.value}
		return !a.known || a.number == int64(len(after.text)), after
	case Incr:
		n := int64(0)
		if before.present {
			var err error
			if n, err = strconv.ParseInt(before.text, 10, 64); err != nil {
				return false, before
			}
		}
		n++
		return !a.known || a.number == n, value{present: true, text: strconv.FormatInt(n, 10)}
	}
	return false, before
}

// Model is the model of one key for porcupine. Histories must be of one key and begin before the
// key exists.
var Model = porcupine.Model{
	Init: func() any { return value{} },
	Step: func(state, input, output any) (bool, any) {
		return step(state.(value), input.(request), output.(answer))
	},
	DescribeOperation: func(input, output any) string {
		q, a := input.(request), output.(answer)
		if !a.known {
			return fmt.Sprintf("%s %s -> ?", q.kind, shorten(q.value))
		}
		switch q.kind {
		case Get:
			if a.absent {
				return "GET -> nil"
			}
			return "GET -> " + shorten(a.text)
		case Set:
			return "SET " + shorten(q.value)
		}
		return fmt.Sprintf("%s %s -> %d", q.kind, q.value, a.number)
	},
	DescribeState: func(state any) string {
		v := state.(value)
		if !v.present {
			return "nil"
		}
		return shorten(v.text)
	},
}

// CheckLinearizable checks each key's history, all of them within the time limit. bad names the
// keys that failed.
func CheckLinearizable(operations []Operation, limit time.Duration) (verdict Linearizability, bad []string) {
	byKey := make(map[string][]porcupine.Operation)
	unknown := 0
	for i := range operations {
		o := &operations[i]
		p := porcupine.Operation{
			ClientId: o.Client,
			Input:    request{o.Kind, o.Value},
			Call:     int64(o.Call),
			Return:   int64(o.Return),
			Output:   answer{known: o.Known(), text: o.Text, absent: o.Absent, number: o.Number},
		}
		if !o.Known() {
			if o.Kind == Get {
				continue // it had no effect, and says nothing
			}
			// A request without a reply overlaps everything after it, also its own client's.
			unknown++
			p.ClientId = 1_000_000 + unknown
		}
		byKey[o.Key] = append(byKey[o.Key], p)
	}

	deadline := time.Now().Add(limit)
	var mu sync.Mutex
	verdict = Linearizable
	keys := make(chan string)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for key := range keys {
				result := porcupine.Unknown
				if left := time.Until(deadline); left > 0 {
					result = porcupine.CheckOperationsTimeout(Model, byKey[key], left)
				}
				mu.Lock()
				switch {
				case result == porcupine.Illegal:
					verdict = NotLinearizable
					bad = append(bad, key)
				case result == porcupine.Unknown && verdict == Linearizable:
					verdict = Undecided
				}
				mu.Unlock()
			}
		}()
	}
	for key := range byKey {
		keys <- key
	}
	close(keys)
	workers.Wait()
	sort.Strings(bad)
	return verdict, bad
}
