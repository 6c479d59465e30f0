"""How pictures go into a model and how its outputs are read: recognised, named or given.

Three ways, never a silent guess:

* recognised: exactly one head family fits the graph and its convention for pictures is known;
* a preset: a TOML file in `contracts/presets`, found by its name, laid over what is recognised;
* a file: the same TOML format, also what `to_toml` writes.
"""

from saccade.contracts.files import preset_names, read_overlay, to_toml
from saccade.contracts.resolve import resolve

__all__ = ["preset_names", "read_overlay", "resolve", "to_toml"]
