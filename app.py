"""Explorer in the browser: ``streamlit run app.py``; its pages are in `simulator.explorer`."""

import os

# Before numpy is loaded, as in `simulator.cli`: threads in the algebra of a dozen columns only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from simulator.explorer.main import main

main()
