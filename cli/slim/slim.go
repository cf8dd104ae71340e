// Package slim lets the linker leave out what nothing calls, a quarter of the
// binary.
//
// The linker drops a type's methods that are never called, unless the program
// looks methods up by a name it computes: then every exported method of every
// type it can see must stay, here the client and conversion code of all API
// groups. One function in the whole program does that, text/template's field
// evaluation, and the templates in it (help texts, kubectl explain; a user's
// go-template sees plain maps) name some twenty methods of three types.
//
// overlay.sh therefore hands the compiler text/template with that one call
// going through a variable, and under the build tag skiffslim Use sets it to
// the table in methods.go. Nothing in GOROOT is touched, and a build without
// the flags works the same and is larger.
package slim
