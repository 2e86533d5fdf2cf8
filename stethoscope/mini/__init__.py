"""The mini: a small Gemma 3 with fine-tunes, SAEs and a language of its own.

`python -m stethoscope.mini.train` rebuilds all of it; the shipped files lie in artifacts/.
"""
