#!/bin/sh
# Make the environments of the peers that cannot share saccade's own: bench/peers.sh [ray] [ultralytics]
# They go to $SACCADE_PEERS (default: the folder "peers" in the system's temporary folder).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
peers=${SACCADE_PEERS:-${TMPDIR:-/tmp}/peers}
python=${PYTHON:-python3.11}

# The libraries that saccade uses too, in the same versions.
numpy=numpy==2.4.6
onnxruntime=onnxruntime==1.31.1
openvino=openvino==2026.4.1
opencv=opencv-python-headless==5.0.0.93
simplejpeg=simplejpeg==1.9.0

make_ray() {
    "$peers/ray/bin/pip" install -q "ray[data]==2.60.0" $numpy $onnxruntime $opencv $simplejpeg
}

# Without its dependencies: they ask for a torchvision that has no CPU build for this torch (a
# stand-in of two functions is beside this file), and for OpenCV with a window system.
make_ultralytics() {
    "$peers/ultralytics/bin/pip" install -q torch==2.13.0
    "$peers/ultralytics/bin/pip" install -q $numpy $onnxruntime $openvino $opencv
    "$peers/ultralytics/bin/pip" install -q pillow pyyaml requests scipy psutil matplotlib polars
    "$peers/ultralytics/bin/pip" install -q --no-deps ultralytics==8.4.190 ultralytics-thop==2.2.3
    stub=$(mktemp -d)
    cp -r "$here/torchvision_stub/." "$stub"
    "$peers/ultralytics/bin/pip" install -q --no-deps "$stub"
    rm -r "$stub"
}

[ $# -gt 0 ] || set -- ray ultralytics
for name in "$@"; do
    case $name in ray | ultralytics) ;; *) echo "peers are ray and ultralytics; got $name" >&2; exit 2 ;; esac
    mkdir -p "$peers"
    [ -x "$peers/$name/bin/python" ] || "$python" -m venv "$peers/$name"
    "make_$name"
done
