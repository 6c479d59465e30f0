"""A deployment as a folder: written by the builder, read by everything that runs it.

    model.onnx        the transformed network, with its external files beside it
    contract.toml     how pictures go in and outputs are read
    labels.txt        class names, one per line, if they are known
    engines/          engines built ahead of time, one file per target, if there are any
    manifest.json     schema version, digests of every file, plan, evidence, machine

Reading one needs no network and no compiler. Every file is compared with its digest before
anything is made of it.
"""

from saccade.bundles.fitting import Mismatch, fits
from saccade.bundles.manifest import SCHEMA, FileEntry, Manifest
from saccade.bundles.reading import Bundle, is_bundle, read_bundle
from saccade.bundles.writing import BundleExtras, EngineFile, write_bundle

__all__ = [
    "SCHEMA",
    "Bundle",
    "BundleExtras",
    "EngineFile",
    "FileEntry",
    "Manifest",
    "Mismatch",
    "fits",
    "is_bundle",
    "read_bundle",
    "write_bundle",
]
