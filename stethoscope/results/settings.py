"""Under which settings a run computed: what may move a number although weights and problems are the same."""

from stethoscope.records import Record


class RunSettings(Record):
    """What decides rounding. Greedy text has no sampling noise, but in 16 bits it still depends on these.

    Attributes:
        device: its name as it calls itself.
        attention: transformers' implementation ("eager", "sdpa").
        deterministic: whether torch was told to use deterministic algorithms only.
        tf32: whether float32 products may be rounded to TF32.
        batch_size: prompts answered at once; None where the use case has its own.
        threads: of torch on the CPU.
        device_map: where each module's weights lay (beside a GPU, cpu and disk: they waited there); None: all on the
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
        """The settings in one line."""
        batch = f", batches of {self.batch_size}" if self.batch_size else ""
        flags = f"TF32 {'on' if self.tf32 else 'off'}, deterministic algorithms {'on' if self.deterministic else 'off'}"
        places = list(dict.fromkeys((self.device_map or {}).values()))
        spread = f" (weights in {', '.join(places)})" if places else ""
        return (
            f"{self.dtype} on {self.device}{spread}, torch {self.torch}, transformers {self.transformers}, "
            f"{self.attention} attention{batch}, {flags}, {self.threads} CPU threads"
        )
