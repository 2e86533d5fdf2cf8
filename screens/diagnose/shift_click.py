"""Shift-click on the heatmap, which plotly's events in Streamlit do not report.

A shift-click on the chart is intercepted before plotly, and its layer is passed as the trigger `reach`. With the box
tool, nothing is intercepted, because shift then adds to the box.
"""

from collections.abc import Callable

import streamlit as st
from streamlit.components.v2 import component

SCRIPT = """
export default function ({ setTriggerValue }) {
  const reach = (event) => {
    const plot = event.shiftKey && event.button === 0 && event.target.closest?.(".st-key-heatmap .js-plotly-plot");
    const axis = plot && plot._fullLayout?.dragmode !== "select" && plot._fullLayout?.xaxis;
    if (!axis?.p2d) return;
    const x = event.clientX - plot.getBoundingClientRect().x - axis._offset;
    if (x < 0 || x > axis._length) return;
    event.stopPropagation();
    event.preventDefault();
    setTriggerValue("reach", Math.round(axis.p2d(x)));
  };
  document.removeEventListener("mousedown", window.stethoscopeReach, true);
  window.stethoscopeReach = reach;
  document.addEventListener("mousedown", reach, true);
  return () => document.removeEventListener("mousedown", reach, true);
}
"""
_mount = component("stethoscope_shift", js=SCRIPT)


def listen(take: Callable[[int], None]) -> None:
    """Call `take(layer)` when a cell of the heatmap is shift-clicked."""

    def reached() -> None:
        layer = getattr(st.session_state.get("shift"), "reach", None)
        if isinstance(layer, int):
            take(layer)

    _mount(key="shift", on_reach_change=reached)
