"""Control texts for any model that reads English: own sentences, written by `python -m stethoscope.corpora.write`."""
