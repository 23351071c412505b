"""The what-if explorer: questions as pages of a Streamlit app. Controls in, records of the public API and their figures out; no
physics here. ``streamlit run app.py`` and ``memwall explore`` start it."""
