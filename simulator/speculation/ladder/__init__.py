"""The ladder of acceptance laws, from one rate to the recording itself: fitted on recorded rounds, judged on held-out ones."""
