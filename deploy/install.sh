#!/bin/sh
# Installs packages of the workspace with what uv.lock pins, every download checked by its hash:
#
#     install.sh third-party | workspace  <which packages: options of `uv export`>
#
# Third parties come first, in a layer of their own: they need no source code and rarely change.
set -eu

what=$1
shift
uv export --quiet --frozen --no-dev --no-editable --no-annotate --no-header "$@" > /tmp/locked.txt

case $what in
workspace)
    sed -n 's/^\.\///p' /tmp/locked.txt | xargs uv pip install --no-deps --compile-bytecode
    ;;
third-party)
    sed -i '/^\.\//d' /tmp/locked.txt
    torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' /tmp/locked.txt)
    if [ -n "$torch" ] && [ -n "${TORCH_INDEX:-}" ]; then
        # The same version without CUDA. The lock has no hash for it; everything else is still taken from the lock.
        awk '/^[^ ]/ { keep = !/^(torch==|triton==|nvidia-|cuda-)/ } keep' /tmp/locked.txt > /tmp/kept.txt
        mv /tmp/kept.txt /tmp/locked.txt
        uv pip install --no-deps --compile-bytecode --default-index "$TORCH_INDEX" "$torch"
    fi
    uv pip install --no-deps --compile-bytecode --require-hashes --requirement /tmp/locked.txt
    ;;
esac
rm /tmp/locked.txt
