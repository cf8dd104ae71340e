#!/bin/sh
# Builds the helper that runtime/embedded embeds. The Makefile calls it before the main
# binary; -trimpath and an empty build id keep two builds byte-identical.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-runtime/embedded/bin/skiff-shim}
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w -buildid=' -o "$out.tmp.$$" ./runtime/shim
mv -f "$out.tmp.$$" "$out"
