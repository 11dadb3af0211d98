package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// fault is misbehaviour that a test has ordered for requests whose path
// contains Match.
type fault struct {
	Match  string `json:"match"`
	Times  int    `json:"times"`   // how often, 0 is always
	Status int    `json:"status"`  // answer with this error
	After  int64  `json:"after"`   // cut the connection after so many bytes of the body; 0 with Cut is at once
	Cut    bool   `json:"cut"`     // cut the connection
	Delay  int    `json:"delayMs"` // wait before the answer
	Rate   int64  `json:"rate"`    // bytes a second at most

	struck int
}

// faults holds what is ordered and which requests came.
type faults struct {
	mu       sync.Mutex
	list     []*fault
	requests []string
}

func (f *faults) record(r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	line := r.Method + " " + r.URL.Path
	if v := r.Header.Get("Range"); v != "" {
		line += " " + v
	}
	f.requests = append(f.requests, line)
}

func (f *faults) serveRequests(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, line := range f.requests {
		fmt.Fprintln(w, line)
	}
}

func (f *faults) clearRequests(http.ResponseWriter, *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = nil
}

func (f *faults) add(w http.ResponseWriter, r *http.Request) {
	ordered := &fault{}
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(ordered); err != nil {
		refuse(w, http.StatusBadRequest, "UNKNOWN", err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, ordered)
}

func (f *faults) clear(http.ResponseWriter, *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
}

// pick returns the first fault that is due for a path.
func (f *faults) pick(path string) *fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.list {
		if strings.Contains(path, x.Match) && (x.Times == 0 || x.struck < x.Times) {
			x.struck++
			return x
		}
	}
	return nil
}

// strike applies the fault that is due for a request, if any. It returns the
// writer to answer with, or false if the request is answered.
func (f *faults) strike(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, bool) {
	x := f.pick(r.URL.Path)
	if x == nil {
		return w, true
	}
	if x.Delay > 0 {
		select {
		case <-time.After(time.Duration(x.Delay) * time.Millisecond):
		case <-r.Context().Done():
			return w, false
		}
	}
	if x.Status != 0 {
		refuse(w, x.Status, "UNKNOWN", "ordered by a test")
		return w, false
	}
	if x.Cut || x.Rate > 0 {
		return &faultyWriter{ResponseWriter: w, fault: x}, true
	}
	return w, true
}

// faultyWriter cuts the connection in the middle of a body, or throttles it.
type faultyWriter struct {
	http.ResponseWriter
	fault   *fault
	written int64
}

func (w *faultyWriter) Write(p []byte) (int, error) {
	if w.fault.Cut && w.written+int64(len(p)) > w.fault.After {
		n, err := w.ResponseWriter.Write(p[:max(0, w.fault.After-w.written)])
		if err != nil {
			return n, err
		}
		if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
			return n, err
		}
		panic(http.ErrAbortHandler)
	}
	n, err := w.ResponseWriter.Write(p)
	w.written += int64(n)
	if w.fault.Rate > 0 {
		time.Sleep(time.Duration(int64(n) * int64(time.Second) / w.fault.Rate))
	}
	return n, err
}
