#!/bin/sh
# Make the environments of the servers that saccade's is compared with, and get perf_analyzer:
#   bench/serve/peers.sh [fastapi] [litserve] [mlserver] [bentoml] [ray_serve] [triton] [perf_analyzer]
# They go to $SACCADE_PEERS (default: the folder "peers" in the system's temporary folder), each in
# its own folder serve_NAME. About 1.5 GB in all.
set -eu
peers=${SACCADE_PEERS:-${TMPDIR:-/tmp}/peers}
python=${PYTHON:-python3.11}
# Triton loads libpython as a shared library, which Debian's Python has and pyenv's does not.
shared_python=${SHARED_PYTHON:-/usr/bin/python3}

# The engine and the decoder are the same everywhere, and the same as saccade's.
onnxruntime=onnxruntime==1.31.1
simplejpeg=simplejpeg==1.9.0
numpy=numpy==2.4.6
opencv=opencv-python-headless==5.0.0.93
engine="$numpy $onnxruntime $opencv $simplejpeg"

make_fastapi() {
    pip_in fastapi "fastapi==0.165.0" "uvicorn[standard]==0.54.0" $engine
}

make_litserve() {
    pip_in litserve "litserve==0.2.19" $engine
}

# Its workers ask for the current event loop, which newer versions of uvloop no longer make.
make_mlserver() {
    pip_in mlserver "mlserver==1.7.1" "uvloop<0.22" $engine
}

make_bentoml() {
    pip_in bentoml "bentoml==1.4.39" $engine
}

make_ray_serve() {
    pip_in ray_serve "ray[serve]==2.60.0" $engine
}

# PyTriton carries a real Triton server (2.51.0). It asks for NumPy 1, hence another OpenCV.
make_triton() {
    pip_in triton "nvidia-pytriton==0.7.0" "geventhttpclient<2.4" "tritonclient[all]==2.55.0" \
        $onnxruntime $simplejpeg "opencv-python-headless==4.11.0.86"
}

# perf_analyzer's own package needs glibc 2.38; the client's wheel 2.50.0 carries one for any.
make_perf_analyzer() {
    into=$peers/serve_perf_analyzer
    wheels=$(mktemp -d)
    "$python" -m pip download -q --no-deps --only-binary=:all: --platform manylinux1_x86_64 \
        --python-version 3.11 -d "$wheels" tritonclient==2.50.0
    "$python" -m pip download -q --no-deps --only-binary=:all: -d "$wheels" \
        nvidia-cuda-runtime-cu12
    (cd "$wheels" && apt-get download -q libb64-0d && dpkg -x libb64-0d_*.deb b64)
    mkdir -p "$into"
    unpack_flat "$wheels"/tritonclient-*.whl bin/perf_analyzer "$into"
    unpack_flat "$wheels"/nvidia_cuda_runtime_cu12-*.whl libcudart.so.12 "$into"
    find "$wheels/b64" -name 'libb64.so*' -exec cp -P {} "$into" \;
    chmod +x "$into/perf_analyzer"
    rm -r "$wheels"
}

# One file out of a wheel, without its folders: unpack_flat WHEEL END_OF_NAME FOLDER
unpack_flat() {
    "$python" - "$1" "$2" "$3" <<'PYTHON'
import pathlib, sys, zipfile
wheel, end, folder = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    name, = (name for name in archive.namelist() if name.endswith(end))
    pathlib.Path(folder, pathlib.Path(name).name).write_bytes(archive.read(name))
PYTHON
}

pip_in() {
    into=$peers/serve_$1
    shift
    "$into/bin/pip" install -q "$@"
}

all="fastapi litserve mlserver bentoml ray_serve triton perf_analyzer"
[ $# -gt 0 ] || set -- $all
for name in "$@"; do
    case " $all " in *" $name "*) ;; *) echo "peers are: $all; got $name" >&2; exit 2 ;; esac
    mkdir -p "$peers"
    maker=$python
    [ "$name" = triton ] && maker=$shared_python
    [ "$name" = perf_analyzer ] || [ -x "$peers/serve_$name/bin/python" ] \
        || "$maker" -m venv "$peers/serve_$name"
    "make_$name"
done
