//go:build linux

package main

import (
	"context"
	"time"
)

// suite is a set of figures.
type suite struct {
	name, about string
	run         func(context.Context, *round) error // one round of one system
	visits      bool                                // it may run on a cluster that somebody else started
	together    bool                                // both systems at the same time: nothing is done but wait
	limit       time.Duration                       // of one round of one system
	rounds      int                                 // at most, if not 0
	budgets     map[string]string                   // by figure
	limits      string                              // what stands in the way of those that are missed, by profiles (-profiles)
}

// allSuites is a function, as suites use what uses it.
func allSuites() []suite {
	return []suite{startSuite, sizeSuite, apiSuite, bulkSuite, extendSuite, storeSuite, schedSuite, nodeSuite, scaleSuite}
}
