package request

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Bool reads a boolean query parameter as upstream's conversion does.
func Bool(q url.Values, name string) (bool, error) {
	switch text := q.Get(name); text {
	case "", "0", "false", "False", "FALSE", "f", "F":
		// An empty value present in the query means true, as upstream's conversion has it.
		return text == "" && q.Has(name), nil
	default:
		return true, nil
	}
}

// Int reads an optional number from the query; a bad one is a 400.
func Int(q url.Values, name string) (*int64, error) {
	text := q.Get(name)
	if text == "" {
		return nil, nil
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return &v, nil
}

// Timeout is how long the request may take: what its query asks for, longest where that is none or
// more. A request that takes as long as its client likes may ask for what it wants.
func (i *Info) Timeout(q url.Values, longest time.Duration) (time.Duration, error) {
	text := q.Get("timeout")
	if text == "" || i.LongRunning(q) {
		return longest, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL - %v", err))
	}
	if d <= 0 || d > longest {
		return longest, nil
	}
	return d, nil
}
