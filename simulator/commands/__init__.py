"""One module per command of ``memwall``; each has one function that adds its parser and imports nothing heavy to do so."""
