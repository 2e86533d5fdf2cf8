"""The linear probe on the residual stream, which separates the subject's documents from the control corpus.

A ridge classifier on each document's mean resid_post, cross-fitted over folds: every document is scored by a probe that
was not trained on it. With standardised features Z [n, d] and labels y = +1 (domain), -1 (control),

    score(x) = x Z^T (Z Z^T / d + ridge I)^-1 y / d        (the dual form: n is smaller than d)

and the AUROC of the scores is a baseline for the SAEs' specificity scores.
"""

import numpy as np
from jaxtyping import Float

from stethoscope.model.residual import mean_residual
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.listening import corpus_documents
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec

FOLDS = 5
RIDGE = 1.0


def document_means(
    spec: DiagnoseSpec, corpus: str, context: Context, progress: Progress
) -> Float[np.ndarray, "n_docs n_layers d_model"]:
    """Return the mean resid_post of the diagnosis' documents of a corpus; counts documents on `progress`."""
    loaded = context.load(spec.model, progress)
    texts = [
        document.problem + (f"\n\n{document.solution}" if spec.tokens == "all" and document.solution else "")
        for document in corpus_documents(spec, corpus)
    ]
    return mean_residual(loaded, loaded.encode(texts), progress=progress)


def held_out_scores(
    domain: Float[np.ndarray, "n_domain d"], control: Float[np.ndarray, "n_control d"], *, seed: int
) -> tuple[Float[np.ndarray, " n_domain"], Float[np.ndarray, " n_control"]]:
    """Return each document's score by a ridge probe fitted on the other folds (folds are drawn within each side)."""
    generator = np.random.default_rng([seed, len(domain), len(control)])
    x = np.concatenate([domain, control]).astype(np.float64)
    y = np.concatenate([np.ones(len(domain)), -np.ones(len(control))])
    fold = np.concatenate([generator.permutation(len(side)) % FOLDS for side in (domain, control)])
    scores = np.empty(len(x))
    for held_out in range(FOLDS):
        train = fold != held_out
        mean, sd = x[train].mean(0), x[train].std(0)
        z = (x - mean) / np.where(sd > 0, sd, 1.0)
        kernel = z[train] @ z[train].T / x.shape[1]
        weights = np.linalg.solve(kernel + RIDGE * np.eye(len(kernel)), y[train] - y[train].mean())
        scores[~train] = z[~train] @ (z[train].T @ weights) / x.shape[1]
    return scores[: len(domain)], scores[len(domain) :]


def auroc_with_draws(
    domain: Float[np.ndarray, " n_domain"], control: Float[np.ndarray, " n_control"], *, draws: int, seed: int
) -> Float[np.ndarray, " one_more"]:
    """Return the AUROC of the scores, followed by `draws` values for documents drawn with replacement."""
    generator = np.random.default_rng([seed, len(domain), len(control)])
    wins = (domain[:, None] > control) + 0.5 * (domain[:, None] == control)  # [n_domain, n_control]
    weights = [
        np.concatenate([np.full((1, n), 1 / n), generator.multinomial(n, np.full(n, 1 / n), size=draws) / n])
        for n in wins.shape
    ]
    return np.einsum("rd,dc,rc->r", weights[0], wins, weights[1], optimize=True)
