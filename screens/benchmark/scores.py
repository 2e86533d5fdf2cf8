"""Result of a benchmark: alarms, forest plot, totals and tables."""

import streamlit as st

from screens.benchmark import score_tables
from screens.shared import mirror, status, ui
from stethoscope.figures import forest
from stethoscope.figures.forest import Order
from stethoscope.formatting import interval, percent, pretty, signed
from stethoscope.judging.arms import judged
from stethoscope.judging.verdicts import SMOKE_TEST, SMOKE_TEST_BELOW
from stethoscope.recipes.reach import in_words
from stethoscope.results import BenchResult

LAYOUTS = ("side by side", "one below the other")
ORDERS: tuple[Order, ...] = ("as planned", "by difference")
GRID_COLUMNS = 4
ALARMS_SHOWN = 6
COLLAPSE = "Possible collapse: answers are degenerate (truncated, looping or unparsable), not just wrong more often."


def badges(result: BenchResult) -> None:
    """Draw badges about limits of the result: finished blocks only, small sample, tuning problems."""
    with st.container(horizontal=True, gap="small", key="bench-badges"):
        if not result.complete:
            st.badge(f"partial: {result.blocks_done} of {result.blocks_total} blocks", color="orange")
        if any(row.n < SMOKE_TEST_BELOW for row in result.arms):
            st.badge("smoke test", color="orange", help=SMOKE_TEST)
        if result.spec.split != "test":
            st.badge(f"{result.spec.split} problems: no verdict", color="orange")
        if result.configurations_tried is not None:
            many = result.configurations_tried
            st.badge(
                f"{many} configuration{'s' if many != 1 else ''} tried on these problems",
                color="gray",
                help=(
                    "Number of edits and settings that have answered any of these problems so far, including these "
                    "arms. The more you try, the more likely one looks good by chance."
                ),
            )


def alarms(result: BenchResult) -> None:
    """Draw unverified weights, collapsed arms and excluded problems."""
    if any(not certificate.verified for certificate in result.certificates.values()):
        st.warning("At least one arm's weights could not be verified; do not trust this run.")
    for name in result.idle:
        st.warning(
            f"**{ui.escape(name)}** changes nothing: its weights equal those of the base, so it gets no verdict and "
            "does not count as a control."
        )
    for name, found in result.reach.items():
        if name not in result.idle and (said := in_words(found)):
            st.caption(f"**{ui.escape(name)}**: {ui.escape(said)}")
    for why in result.not_the_fine_tune.values():
        st.caption(ui.escape(why))
    fallen = [row for row in result.arms if row.collapsed]
    if fallen:
        lines = [
            f"**{ui.escape(row.arm)} · {pretty(row.subject)}**: {ui.escape(row.collapsed or '')}"
            for row in fallen[:ALARMS_SHOWN]
        ]
        if len(fallen) > ALARMS_SHOWN:
            lines.append(f"… and {len(fallen) - ALARMS_SHOWN} more (column “alarm” of the table of arms).")
        st.error("  \n".join((COLLAPSE, *lines)))
    if result.shortage:
        st.info(ui.escape(result.shortage))
    if result.excluded:
        left_out = ", ".join(f"{ui.escape(pretty(subject))} {n}" for subject, n in result.excluded.items())
        st.warning(f"Problems used for tuning a recipe are excluded: {left_out}.")
    if result.no_verdict:
        st.info(ui.escape(result.no_verdict))


def totals(result: BenchResult) -> None:
    """Draw the macro totals as numbers, one per arm; micro totals are in the figure and the table."""
    macro = [row for row in result.totals if row.kind == "macro"]
    if not macro:
        return
    st.caption(
        f"Macro: the mean over subjects of the paired difference from {ui.escape(macro[0].reference)}, n = "
        f"{macro[0].n} problems; bootstrap intervals over problems within each subject."
    )
    with st.container(horizontal=True, key="bench-totals"):
        for row in macro:
            st.metric(
                ui.escape(row.arm),
                signed(100 * row.difference, 1, " points"),
                f"95% CI {interval(row.ci_low, row.ci_high)}",
                delta_color="off",
                delta_arrow="off",
                border=True,
                help=f"Macro accuracy {percent(row.accuracy)}, {ui.escape(row.reference)} "
                f"{percent(row.reference_accuracy)}.",
                width=244,
            )


def _by_phone() -> bool:
    return "Mobi" in (st.context.headers.get("User-Agent") or "")


def picture(result: BenchResult, *, key: str = "forest") -> None:
    """Draw the forest plot with controls for arms, order and layout."""
    if not result.comparisons:
        st.caption("No arm has answered the same problems as the reference yet.")
        return
    chosen = st.session_state
    chosen.setdefault("forest_layout", LAYOUTS[1] if _by_phone() else LAYOUTS[0])
    chosen.setdefault("forest_order", ORDERS[0])
    arms = forest.arms_in_order(result, chosen["forest_order"])
    kept = [arm for arm in chosen.get("forest_arms", arms) if arm in arms]
    chosen["forest_arms"] = kept or list(arms)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key=f"{key}-controls"):
        st.segmented_control("Order", ORDERS, required=True, **mirror.mirror("forest_order", f"{key}-order", "default"))
        st.segmented_control(
            "Subjects", LAYOUTS, required=True, **mirror.mirror("forest_layout", f"{key}-layout", "default")
        )
        with st.popover(f"Arms: {len(chosen['forest_arms'])} of {len(arms)}", key=f"{key}-arms-menu"):
            st.multiselect("Arms to show", arms, **mirror.mirror("forest_arms", f"{key}-arms", "default"))
    shown = [arm for arm in arms if arm in chosen["forest_arms"]]
    grid = chosen["forest_layout"] == LAYOUTS[0]
    subjects = list(dict.fromkeys(row.subject for row in result.arms))
    figure = forest.paired_differences(
        result, subjects, result.spec.margin, arms=shown, columns=GRID_COLUMNS if grid else 1
    )
    with st.container(key=f"{key}-wide" if grid else f"{key}-tall"):
        ui.chart(
            figure,
            key=key,
            caption=forest.caption(result, result.spec.margin),
            rows=result.comparisons,
            more={"Arms": result.arms, "Totals": result.totals},
        )


def draw(result: BenchResult) -> None:
    """Draw the finished or stopped benchmark, and show its weights in the status strip."""
    arm = judged(result.spec.arms)
    if arm is not None and arm.name in result.certificates:
        status.show_certificate(result.certificates[arm.name], arm.recipe)
    with ui.card(f"Paired differences from {result.spec.arms[0].name}", key="bench-result"):
        badges(result)
        alarms(result)
        picture(result)
        totals(result)
        score_tables.draw(result)
