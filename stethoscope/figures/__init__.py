"""Pictures: results in, plotly figures out. No Streamlit here; every colour is legible on light and on dark paper."""
