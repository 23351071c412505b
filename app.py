"""Explorer in the browser: ``streamlit run app.py``; its pages are in `simulator.explorer`."""

from simulator.explorer.main import main

main()
