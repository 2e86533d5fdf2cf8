"""Pure statistics on numbers: intervals, paired tests, corrections, the bootstrap, power and the four verdicts.

Comparisons are paired: both arms answer the same problems, and the 2x2 table counts them as n11 (both right), n10 (only
the arm right), n01 (only the reference right) and n00 (both wrong). The headline is

    difference = (n10 - n01) / n, with Newcombe's method-10 interval for paired proportions and the exact McNemar p.

Fractions stay in [0, 1]. Impossible counts are programming errors and raise AssertionError.
"""

from stethoscope.statistics.attainable import (
    CANNOT_BE_SIGNIFICANT,
    FEWEST_RANDOM_SETS,
    cannot_reach,
    smallest_holm_p,
    smallest_mcnemar_p,
    smallest_rank_p,
)
from stethoscope.statistics.bootstrap import stratified_paired_bootstrap
from stethoscope.statistics.corrections import benjamini_hochberg, holm, step_down_max_t
from stethoscope.statistics.draws import TestedDifference, difference_to_draws, rank_p, smallest_p_to_draws
from stethoscope.statistics.intervals import (
    Interval,
    MeanInterval,
    PairedDifference,
    lm_eval_stderr,
    newcombe_paired,
    paired_mean_interval,
    percentile_interval,
    wilson,
)
from stethoscope.statistics.paired import (
    BETTER,
    INCONCLUSIVE,
    NOT_WORSE,
    SIGNIFICANCE,
    WORSE,
    Verdict,
    ZTest,
    discordant_e_value,
    mcnemar_exact,
    unpooled_z,
    verdict,
)
from stethoscope.statistics.power import (
    DiscordantRates,
    detectable_difference,
    discordant_rates,
    expected_found,
    mcnemar_power,
    n_for_margin,
)
from stethoscope.statistics.ranks import TauTest, kendall_tau, kendall_test

__all__ = [
    "CANNOT_BE_SIGNIFICANT",
    "FEWEST_RANDOM_SETS",
    "TauTest",
    "cannot_reach",
    "kendall_test",
    "smallest_holm_p",
    "smallest_mcnemar_p",
    "smallest_p_to_draws",
    "rank_p",
    "smallest_rank_p",
    "n_for_margin",
    "mcnemar_power",
    "expected_found",
    "discordant_rates",
    "detectable_difference",
    "DiscordantRates",
    "BETTER",
    "INCONCLUSIVE",
    "NOT_WORSE",
    "SIGNIFICANCE",
    "WORSE",
    "Interval",
    "MeanInterval",
    "PairedDifference",
    "TestedDifference",
    "Verdict",
    "ZTest",
    "benjamini_hochberg",
    "difference_to_draws",
    "discordant_e_value",
    "holm",
    "kendall_tau",
    "lm_eval_stderr",
    "mcnemar_exact",
    "newcombe_paired",
    "paired_mean_interval",
    "percentile_interval",
    "step_down_max_t",
    "stratified_paired_bootstrap",
    "unpooled_z",
    "verdict",
    "wilson",
]
