"""Results as text, tables and files; no physics here."""
