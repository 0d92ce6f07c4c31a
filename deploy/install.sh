#!/bin/sh
# Installs packages of the workspace in /src into /opt/tradeloop, with what uv.lock pins, every download checked by its
# hash. A step of the Dockerfile:
#
#     install.sh third-party | workspace  <which packages: options of `uv export`>
set -eu

what=$1
shift
PATH=/opt/uv/bin:$PATH
export UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/tradeloop
[ -d "$VIRTUAL_ENV" ] || uv venv --quiet --python "$(command -v python3)" "$VIRTUAL_ENV"

folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cd /src
uv export --quiet --frozen --no-dev --no-editable --no-annotate --no-header "$@" > "$folder/all"
sed -n 's/^\.\///p' "$folder/all" > "$folder/workspace"
sed '/^\.\//d' "$folder/all" > "$folder/third-party"

case $what in
workspace)
    xargs uv pip install --no-deps < "$folder/workspace"
    ;;
third-party)
    torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$folder/third-party")
    if [ -n "$torch" ] && [ -n "${TORCH_INDEX:-}" ]; then
        # The same version without CUDA. The lock has no hash for it; everything else is still taken from the lock.
        awk '/^[^ ]/ { keep = !/^(torch==|triton==|nvidia-|cuda-)/ } keep' "$folder/third-party" > "$folder/kept"
        mv "$folder/kept" "$folder/third-party"
        uv pip install --no-deps --default-index "$TORCH_INDEX" "$torch"
    fi
    uv pip install --no-deps --require-hashes --requirement "$folder/third-party"
    ;;
*)
    echo "install.sh: third-party or workspace, not $what" >&2
    exit 2
    ;;
esac
