#!/bin/sh
# Writes the overlay that package slim describes into the folder $1 and prints
# the build flags that use it. Where text/template is not as we know it, it
# says so and prints none of them: the binary is then larger, and the same.
set -eu
GO=${GO:-go}
dir=$1
here=$(dirname "$0")
template=$("$GO" env GOROOT)/src/text/template
before='ptr.MethodByName(fieldName)'
if [ "$(grep -cF "$before" "$template/exec.go")" != 1 ]; then
	echo "note: text/template of $("$GO" env GOVERSION) differs from what cli/slim knows; building without it" >&2
	echo "-tags=grpcnotrace"
	exit 0
fi
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
sed 's/ptr\.MethodByName(fieldName)/methodByName(ptr, fieldName)/' "$template/exec.go" >"$dir/exec.go.$$"
mv -f "$dir/exec.go.$$" "$dir/exec.go"
cp "$here/template.go.txt" "$dir/methods.go.$$"
mv -f "$dir/methods.go.$$" "$dir/methods.go"
printf '{"Replace":{"%s":"%s","%s":"%s"}}\n' \
	"$template/exec.go" "$dir/exec.go" "$template/methods.go" "$dir/methods.go" >"$dir/overlay.json"
echo "-tags=skiffslim,grpcnotrace -overlay=$dir/overlay.json"
