"""Contents of a profile: model, SAEs and task vectors."""

from stethoscope.errors import CheckpointError
from stethoscope.records import Record
from stethoscope.results.base import Result
from stethoscope.results.preflight import PreflightCheck
from stethoscope.results.reach import Ground, MovedWeights


class SaeRow(Record):
    """One SAE; `model` is the model that it was trained on according to its file, None if unknown."""

    layer: int
    site: str
    d_sae: int
    architecture: str
    model: str | None = None


class ModelRow(Record):
    """Size and identity of the loaded model; `checksum` covers all weights as loaded.

    `revision` is the commit of a model from a hub; `asked_revision` is the requested branch, tag or commit, or None for
    the newest. `chat_template`: whether the tokenizer has one.
    """

    id: str
    revision: str | None
    asked_revision: str | None = None
    dtype: str
    n_layers: int
    d_model: int
    parameters: int
    device: str
    size_bytes: int
    checksum: str
    chat_template: bool


class TaskVectorRow(Record):
    """One task vector: ||tau_l|| / ||theta_l|| of each layer (edited matrices only), and the weights that it changes.

    `moves_outer`: it contains a delta of embeddings, final norm or head. `not_the_fine_tune`: a sentence saying why
    base plus task vector is not the fine-tuned model; None if it is. `unusable`: why it cannot be used with this base;
    it then has no norms.
    """

    name: str
    source: str
    relative_norm_by_layer: tuple[float, ...]
    moved: tuple[MovedWeights, ...] = ()
    moves_outer: bool = False
    not_the_fine_tune: str | None = None
    unusable: PreflightCheck | None = None

    def refusal(self) -> CheckpointError | None:
        """Return the error that using it raises; None if it can be used."""
        why = self.unusable
        if why is None:
            return None
        return CheckpointError(why.what, got=why.got, expected=why.expected, next_step=why.next_step)


class InfoResult(Result):
    """What a profile holds."""

    model: ModelRow
    saes: tuple[SaeRow, ...]
    task_vectors: tuple[TaskVectorRow, ...]

    def refusal(self, task_vector: str) -> CheckpointError | None:
        """Return the error that using the task vector with this name raises; None if it can be used or is unknown."""
        return next((row.refusal() for row in self.task_vectors if row.name == task_vector), None)

    def ground(self, task_vector: str) -> Ground:
        """Return the `Ground` of edits with the task vector of this name and the profile's SAEs.

        Raises:
            CheckpointError: it cannot be used with this base.
        """
        row = next(row for row in self.task_vectors if row.name == task_vector)
        if (error := row.refusal()) is not None:
            raise error
        return Ground(
            n_layers=self.model.n_layers,
            moved=row.moved,
            outer=row.moves_outer,
            sae_layers=tuple(sae.layer for sae in self.saes),
            not_the_fine_tune=row.not_the_fine_tune,
        )
