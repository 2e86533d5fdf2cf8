"""Settings of a run that can affect its numbers even if weights and problems are the same."""

from stethoscope.records import Record


class RunSettings(Record):
    """Settings that affect rounding. Greedy text has no sampling noise, but in 16 bits it depends on these.

    Attributes:
        device: name reported by the device.
        attention: transformers' implementation ("eager", "sdpa").
        deterministic: whether torch was told to use deterministic algorithms only.
        tf32: whether float32 products may be rounded to TF32.
        batch_size: prompts per batch; None if the use case chooses its own.
        threads: CPU threads of torch.
        device_map: location of each module's weights (cpu and disk: offloaded from a GPU); None if all are on the
            device.
    """

    dtype: str
    device: str
    torch: str
    transformers: str
    attention: str
    deterministic: bool
    tf32: bool
    batch_size: int | None
    threads: int
    device_map: dict[str, str] | None = None

    @property
    def in_words(self) -> str:
        """The settings as one line of text."""
        batch = f", batches of {self.batch_size}" if self.batch_size else ""
        flags = f"TF32 {'on' if self.tf32 else 'off'}, deterministic algorithms {'on' if self.deterministic else 'off'}"
        places = list(dict.fromkeys((self.device_map or {}).values()))
        spread = f" (weights in {', '.join(places)})" if places else ""
        return (
            f"{self.dtype} on {self.device}{spread}, torch {self.torch}, transformers {self.transformers}, "
            f"{self.attention} attention{batch}, {flags}, {self.threads} CPU threads"
        )
