// Package deepstack gives the goroutine of a request the stack that an API's
// handlers take, while its stack is still shallow.
//
// A goroutine begins with 2 KiB. A stack that grows where it is deep is copied
// frame by frame, which was an eighth of what the creation of a pod costs.
package deepstack

import "net/http"

// For is called at a goroutine's beginning with the method it is to answer. A
// read, and so a watch, which keeps its stack, gets 8 KiB; others get 16.
func For(method string) {
	if method == http.MethodGet {
		half(0)
	} else {
		whole(0)
	}
}

// The runtime makes room for a function's frame at its entry, whether the
// function then uses it or not.
//
//go:noinline
func half(n int) byte {
	if n == 0 {
		return 0
	}
	var room [5 << 10]byte
	room[n] = 1
	return room[2*n]
}

//go:noinline
func whole(n int) byte {
	if n == 0 {
		return 0
	}
	var room [10 << 10]byte
	room[n] = 1
	return room[2*n]
}
