"""The mini: a small Gemma 3 with fine-tunes, SAEs and a language of its own, rebuilt by `python -m stethoscope.mini.train`."""
