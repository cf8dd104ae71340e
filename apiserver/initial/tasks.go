package initial

import (
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Tasks run at once, in the group's limit. One that fails holds up no other.
type Tasks struct {
	errgroup.Group
	mu   sync.Mutex
	errs []error
}

// Do runs f beside the others.
func (t *Tasks) Do(f func() error) {
	t.Go(func() error {
		if err := f(); err != nil {
			t.mu.Lock()
			t.errs = append(t.errs, err)
			t.mu.Unlock()
		}
		return nil
	})
}

// Err waits for all and returns their errors, joined.
func (t *Tasks) Err() error {
	t.Wait() //nolint:errcheck // Do collects the errors
	return errors.Join(t.errs...)
}
