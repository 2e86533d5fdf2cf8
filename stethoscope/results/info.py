"""What a profile holds: model, SAEs, task vectors."""

from stethoscope.records import Record


class SaeRow(Record):
    """One SAE of the bank; `model` is what its file says it was trained on, None where it says nothing."""

    layer: int
    site: str
    d_sae: int
    architecture: str
    model: str | None = None


class ModelRow(Record):
    """Size and identity of the loaded model; `checksum` is over all weights as loaded.

    `chat_template`: the tokenizer has one.
    """

    id: str
    revision: str | None
    dtype: str
    n_layers: int
    d_model: int
    parameters: int
    device: str
    size_bytes: int
    checksum: str
    chat_template: bool


class TaskVectorRow(Record):
    """One task vector: ||tau_l|| / ||theta_l|| of each layer (edited matrices only)."""

    name: str
    source: str
    relative_norm_by_layer: tuple[float, ...]


class InfoResult(Record):
    """What a profile holds."""

    model: ModelRow
    saes: tuple[SaeRow, ...]
    task_vectors: tuple[TaskVectorRow, ...]
