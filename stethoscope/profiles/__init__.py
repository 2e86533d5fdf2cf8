"""Named bundles of a model, its SAEs, task vectors and problems: included profiles, and your own as TOML files.

A profile only saves typing: every spec is built from its parts, and no result depends on the profile's name.
"""

from stethoscope.profiles.profile import Profile, Suggestion
from stethoscope.profiles.reading import PROFILES, load_profile

MINI = PROFILES["mini"]

__all__ = ["MINI", "PROFILES", "Profile", "Suggestion", "load_profile"]
