#!/bin/sh
# Run by a machine that has Python, torch and numpy, from an unpacked bundle (make gpu-bundle):
#   ./run.sh [ARGUMENT …]   all tests and measurements, or as the arguments of benchmarks.gpu say
#   ./run.sh try            what can be tried without a GPU
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
wanted=$(cat "$here/python")
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "$wanted" ]; then
    echo "error: this bundle is for Python $wanted, and $python is $found; set PYTHON to another," >&2
    echo "or make a bundle for it: make gpu-bundle BUNDLE_PYTHON=$found" >&2
    exit 1
fi
"$python" -c 'import numpy, torch'

unpack() {  # FOLDER: its wheels, beside it, all at once
    [ -d "$here/$1.site" ] && return
    rm -rf "$here/$1.part"
    for wheel in "$here/$1"/*.whl; do
        "$python" -m zipfile -e "$wheel" "$here/$1.part"
    done
    mv "$here/$1.part" "$here/$1.site"
}

unpack wheels
path=$here/code:$here/wheels.site
if ! "$python" -c 'import torchvision' 2>/dev/null; then
    unpack extra
    path=$path:$here/extra.site
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
# Results lie beside this file, whatever the caller's folder is.
cd "$here/code"
if [ "${1:-}" = try ]; then
    "$python" -m pytest -m "gpu and not slow" tests/gpu -p no:cacheprovider
    exec "$python" -m benchmarks.gpu --tiny
fi
exec "$python" -m benchmarks.gpu --out "$here/gpu.json" "$@"
