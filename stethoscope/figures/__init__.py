"""Figures: convert results to plotly figures, without Streamlit. All colours are legible on light and dark
backgrounds."""
