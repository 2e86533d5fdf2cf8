"""Control texts for any model that reads English: our own sentences, written by `python -m
stethoscope.corpora.write`."""
