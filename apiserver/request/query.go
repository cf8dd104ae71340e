package request

import (
	"net/url"
	"strconv"

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
