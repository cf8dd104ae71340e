//go:build !skiffslim

package slim

// Use does nothing in a build without the overlay: templates find methods by
// reflection.
func Use() {}
