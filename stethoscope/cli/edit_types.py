"""Edit type and SAEs from a command's options."""

import argparse

from stethoscope.errors import RecipeError, raise_if
from stethoscope.profiles import Profile
from stethoscope.records import EditType, NormMatchedEdit, ProjectedEdit, RandomSubspaceEdit, RawEdit, ServedEdit


def with_site(options: argparse.Namespace, profile: Profile) -> Profile:
    """Return `profile` with its SAEs at --site, if the command has that option."""
    return profile.model_copy(update={"saes": profile.saes_at(getattr(options, "site", None))})


def edit_type_of(options: argparse.Namespace, profile: Profile) -> EditType:
    """Return the edit type of --edit-type.

    Raises:
        RecipeError: a required option of this edit type is missing.
        ProfileError: the profile lacks fields for a diagnosis, or the subject.
    """
    if options.edit_type == "raw":
        return RawEdit()
    if options.edit_type.startswith("random-subspace"):
        if options.rank is None:
            raise RecipeError(
                f"--edit-type {options.edit_type} needs --rank",
                expected="a number of dimensions",
                next_step="Add --rank, for example --rank 16.",
            )
        matched, site = options.edit_type.endswith("norm-matched"), options.site or profile.site
        saes = next((ref for ref in profile.known_saes if ref.site == site), None)
        return RandomSubspaceEdit(rank=options.rank, site=site, saes=saes, seed=options.seed, norm_matched=matched)
    if options.edit_type == "raw-where-projected":
        return ServedEdit(saes=with_site(options, profile).diagnose_spec().listens_with)
    raise_if(profile.cannot_listen())
    if options.basis_subject is None:
        raise RecipeError(
            f"--edit-type {options.edit_type} needs --basis-subject",
            expected=profile.problems.subjects,
            next_step="Add --basis-subject with one of these.",
        )
    profile = with_site(options, profile)
    profile.check_subjects((options.basis_subject,))
    kind = ProjectedEdit if options.edit_type == "projected" else NormMatchedEdit
    return kind(
        diagnosis=profile.diagnose_spec(),
        subject=options.basis_subject,
        top_k=options.top_k or profile.top_k,
    )
