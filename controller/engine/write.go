package engine

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/kubernetes"
)

// Write is one intended change, as data: a plan is a list of them. Text is its transcript form
// ("update nodes/n1 spec.podCIDR"), which tests compare; Do makes the change.
type Write struct {
	Text string
	Do   func(ctx context.Context, c kubernetes.Interface) error
}

func (w Write) String() string { return w.Text }

// Apply makes the writes in order and stops at the first error.
func Apply(ctx context.Context, c kubernetes.Interface, writes []Write) error {
	for _, w := range writes {
		if err := w.Do(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", w.Text, err)
		}
	}
	return nil
}

// ApplyAll makes every write, whatever happened to the others, and joins the errors.
func ApplyAll(ctx context.Context, c kubernetes.Interface, writes []Write) error {
	var errs []error
	for _, w := range writes {
		if err := w.Do(ctx, c); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w.Text, err))
		}
	}
	return errors.Join(errs...)
}
