"""The mini: a small Gemma 3 with fine-tunes, SAEs and its own synthetic language.

`python -m stethoscope.mini.train` rebuilds all of it; the included files are in artifacts/.
"""
