package fairness

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/skiff-project/skiff/auth"
)

// Dump answers a request for one of upstream's tables about what runs and
// waits, and reports whether there is one at that path.
func (g *Gate) Dump(w http.ResponseWriter, path string, query url.Values) bool {
	name, ok := strings.CutPrefix(path, "/debug/api_priority_and_fairness/dump_")
	if !ok || g.Limiter == nil {
		return false
	}
	var rows [][]string
	switch name {
	case "priority_levels":
		rows = g.Limiter.dumpLevels()
	case "queues":
		rows = g.Limiter.dumpQueues()
	case "requests":
		rows = g.Limiter.dumpRequests(query.Get("includeRequestDetails") != "")
	default:
		return false
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	table := tabwriter.NewWriter(w, 8, 0, 1, ' ', 0)
	for _, row := range rows {
		io.WriteString(table, strings.Join(row, ",\t")+"\n") //nolint:errcheck // Flush tells
	}
	table.Flush() //nolint:errcheck // the client went away
	return true
}

func (l *Limiter) byName() []*level {
	return slices.SortedFunc(slices.Values(l.levels), func(a, b *level) int { return cmp.Compare(a.name, b.name) })
}

func (l *Limiter) dumpLevels() [][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	rows := [][]string{{"PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing", "WaitingRequests", "ExecutingRequests",
		"DispatchedRequests", "RejectedRequests", "TimedoutRequests", "CancelledRequests"}}
	for _, lv := range l.byName() {
		active := 0
		for i := range lv.queues {
			if len(lv.queues[i].waiting) > 0 {
				active++
			}
		}
		row := []string{lv.name, strconv.Itoa(active), strconv.FormatBool(lv.waiting+lv.running == 0), "false"} // levels that go are gone at once
		var dispatched, rejected, late, cancelled int
		for k, c := range l.counts {
			if k.level == lv.name {
				dispatched += c.dispatched
				rejected += c.rejected[ErrQueueFull] + c.rejected[ErrLimit]
				late += c.rejected[ErrTimeOut]
				cancelled += c.rejected[ErrCancelled]
			}
		}
		rows = append(rows, append(row, numbers(lv.waiting, lv.running, dispatched, rejected, late, cancelled)...))
	}
	return rows
}

func (l *Limiter) dumpQueues() [][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	rows := [][]string{{"PriorityLevelName", "Index", "PendingRequests", "ExecutingRequests", "SeatsInUse", "NextDispatchR",
		"InitialSeatsSum", "MaxSeatsSum", "TotalWorkSum"}}
	for _, lv := range l.byName() {
		for i := range lv.queues {
			q := &lv.queues[i]
			seats, work := 0, 0.0
			for _, w := range q.waiting {
				seats += w.width
				work += float64(w.width) * (service + w.pass.after.Seconds())
			}
			row := append([]string{lv.name}, numbers(i, len(q.waiting), q.running, q.seats)...)
			rows = append(rows, append(append(append(row, seatSeconds(q.next)), numbers(seats, seats)...), seatSeconds(work)))
		}
	}
	return rows
}

func (l *Limiter) dumpRequests(details bool) [][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	head := []string{"PriorityLevelName", "FlowSchemaName", "QueueIndex", "RequestIndexInQueue", "FlowDistingsher", "ArriveTime",
		"InitialSeats", "FinalSeats", "AdditionalLatency", "StartTime"}
	if details {
		head = append(head, "UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource")
	}
	rows := [][]string{head}
	add := func(lv *level, queue, at int, p *Pass, began time.Time) {
		final := 0
		if p.after > 0 {
			final = p.width
		}
		row := append([]string{lv.name, p.schema.name}, numbers(queue, at)...)
		row = append(append(row, distinguisher(p.schema, p.asks), instant(p.arrived)), numbers(p.width, final)...)
		row = append(row, p.after.String(), instant(began))
		if a := p.asks; details {
			version := strings.TrimPrefix(a.APIGroup+"/"+a.APIVersion, "/")
			row = append(row, a.User.Name, a.Verb, a.Path, a.Namespace, a.Name, version, a.Resource, a.Subresource)
		}
		rows = append(rows, row)
	}
	for _, lv := range l.byName() {
		for i := range lv.queues {
			for at, w := range lv.queues[i].waiting {
				add(lv, i, at, w.pass, time.Time{})
			}
		}
		for p := lv.passes; p != nil; p = p.next {
			queue := -1
			for i := range lv.queues {
				if p.queue == &lv.queues[i] {
					queue = i
				}
			}
			add(lv, queue, -1, p, p.began)
		}
	}
	return rows
}

// distinguisher is what tells a request's flow from others of its schema.
func distinguisher(s *schema, a *auth.Attributes) string {
	if by := s.spec.DistinguisherMethod; by != nil {
		switch by.Type {
		case flowcontrolv1.FlowDistinguisherMethodByUserType:
			return a.User.Name
		case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
			return a.Namespace
		}
	}
	return ""
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// seatSeconds is an amount of work as upstream writes it.
func seatSeconds(s float64) string {
	whole, part := math.Modf(max(0, s))
	return fmt.Sprintf("%d.%08dss", int64(whole), int64(part*1e8))
}

func numbers(list ...int) []string {
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = strconv.Itoa(n)
	}
	return out
}
