// Package object and the packages below it hold what an API object is on the
// wire and on disk: its encodings (wire, codec) and the patches that may be
// applied to it (patch). They know k8s.io/apimachinery, no resource list, no
// store and no HTTP.
package object
